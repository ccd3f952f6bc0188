"""Every value of every switch works in every room, or is refused by name."""

import dataclasses
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from lm.errors import UserError
from lm.export.gguf import export_gguf
from lm.export.hugging_face import export_hugging_face
from lm.generation.decoder import Decoder
from lm.generation.numba_decoder import NumbaDecoder, supports
from lm.model.config import ModelConfig
from lm.model.files import load_model, save_model
from lm.model.transformer import TransformerLM
from lm.planning.plan import plan
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.config import OptimConfig, RunConfig, RuntimeConfig, TrainConfig
from lm.training.optimizer import make_optimizer
from lm.training.train_step import TrainStep

SECTIONS = {"model": ModelConfig, "optim": OptimConfig, "train": TrainConfig, "runtime": RuntimeConfig}
END = "<|endoftext|>"


def switches() -> list[tuple[str, str, Any]]:
    """(section, name, value) for every value of every Literal and bool."""
    found = []
    for section, config in SECTIONS.items():
        for name, kind in get_type_hints(config).items():
            values = get_args(kind) if get_origin(kind) is Literal else (False, True) if kind is bool else ()
            found += [(section, name, value) for value in values]
    return found


MODEL_SWITCHES = [(name, value) for section, name, value in switches() if section == "model"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    vocab = {**{i: bytes([i]) for i in range(256)}, 256: b"th", 257: END.encode()}
    return Tokenizer(vocab, [(b"t", b"h")], [END])


def test_the_walk_sees_the_switches():
    some = {("model", "norm", "none"), ("model", "ffn", "relu_squared"), ("model", "canon", True)}
    some |= {("optim", "optimizer", "muon"), ("optim", "cautious_weight_decay", True)}
    some |= {("train", "document_mask", True)}
    assert some <= set(switches())


@pytest.mark.parametrize(("section", "name", "value"), switches())
def test_every_value_trains_as_planned(params, small, tmp_path, section, name, value):
    settings = {
        "model": small,
        "optim": dataclasses.replace(params.optim, warmup_steps=0, decay_steps=2),
        "train": dataclasses.replace(params.train, batch_size=2, max_steps=4),
        "runtime": params.runtime,
    }
    settings[section] = dataclasses.replace(settings[section], **{name: value})
    run = RunConfig(model=settings["model"], optim=settings["optim"], train=settings["train"])
    runtime = settings["runtime"]
    result = plan(run, 61, runtime, torch.device("cpu"), tmp_path, num_processes=1)
    torch.manual_seed(0)
    model = TransformerLM(run.model, 61, runtime.attention_backend, runtime.checkpoint_activations)
    assert sum(result.parameters.values()) == sum(p.numel() for p in model.parameters())
    assert result.largest_micro_batch_size == 2
    step = TrainStep(
        model,
        make_optimizer(model, run.optim),
        precision=run.train.precision,
        max_grad_norm=1.0,
        document_separator=0 if run.train.document_mask else None,
    )
    ids = torch.randint(61, (2, 17))
    losses = [step(ids[:, :-1], ids[:, 1:], learning_rate=0.01)[0] for _ in range(4)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("name", "value"), MODEL_SWITCHES)
def test_every_value_of_the_model_decodes_and_exports_or_is_refused_by_name(small, tokenizer, tmp_path, name, value):
    torch.manual_seed(0)
    model = TransformerLM(dataclasses.replace(small, **{name: value}), tokenizer.vocab_size).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))  # layers that begin as the identity have a say, too
        expected = model(torch.tensor([5, 17, 3, 9]))[-1]
    decoders = [Decoder, NumbaDecoder] if supports(model) else [Decoder]
    for decoder in [make_decoder(model, 1) for make_decoder in decoders]:
        decoder.prefill([0], [[5, 17, 3]])
        torch.testing.assert_close(decoder.decode([9])[0], expected, atol=1e-5, rtol=0)
    save_model(tmp_path / "model", model, tokenizer.hash)
    with torch.no_grad():
        assert load_model(tmp_path / "model", tokenizer.hash)(torch.tensor([5, 17, 3, 9]))[-1].equal(expected)
    tokenizer.save(tmp_path / "tokenizer")
    # Whether a value is exported or refused is tested in tests/export; here, a refusal must name it.
    for export in (
        lambda: export_hugging_face(tmp_path / "model", tmp_path / "tokenizer", tmp_path / "hf", None, None),
        lambda: export_gguf(tmp_path / "model", tmp_path / "tokenizer", tmp_path / "model.gguf", "f32"),
    ):
        try:
            export()
        except UserError as error:
            assert re.search(f"model.{name}: .*{value}", str(error))
