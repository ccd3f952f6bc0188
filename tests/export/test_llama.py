import dataclasses
import typing

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lm.errors import UserError
from lm.export.gguf import export_gguf
from lm.export.hugging_face import export_hugging_face
from lm.export.llama import (
    check_layout,
    hugging_face_config,
    llama_name,
    llama_weights,
    norm_eps,
    to_half_split,
    to_interleaved,
)
from lm.model.config import ModelConfig
from lm.model.files import load_model
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer


def all_switches() -> list[tuple[str, object]]:
    """Every value of every Literal and bool in the configuration of a model."""
    switches: list[tuple[str, object]] = []
    for name, kind in typing.get_type_hints(ModelConfig).items():
        values = (False, True) if kind is bool else typing.get_args(kind)
        switches += [(name, value) for value in values]
    return switches


def test_half_split_puts_even_rows_of_each_head_before_odd_ones():
    rows = torch.arange(8)
    assert to_half_split(rows, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert to_half_split(rows, 8).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize("d_head", [2, 6, 8])
def test_to_interleaved_is_the_inverse_of_to_half_split(d_head):
    rows = torch.randn(3 * d_head, 5)
    assert to_interleaved(to_half_split(rows, d_head), d_head).equal(rows)
    assert to_interleaved(rows[:, 0], d_head).equal(to_interleaved(rows, d_head)[:, 0])


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_names_and_shapes_match_transformers(small, qk_norm, tie_embeddings):
    config = dataclasses.replace(small, num_kv_heads=2, qk_norm=qk_norm, tie_embeddings=tie_embeddings)
    model = TransformerLM(config, vocab_size=61)
    values = hugging_face_config(model, end_of_text_id=60)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    assert type(theirs).__name__ == values["architectures"][0]
    shapes = {name: weight.shape for name, weight in theirs.named_parameters()}
    assert {name: weight.shape for name, weight in llama_weights(model, half_split=True).items()} == shapes


@torch.no_grad()
@pytest.mark.parametrize(("name", "value"), all_switches())
def test_every_switch_is_exported_exactly_or_refused_by_name(folders, tmp_path, name, value):
    # transformers assumes heads of width 128 when it reads a GGUF file of Qwen3.
    model, tokenizer = folders(**{"d_model": 128, "num_heads": 1, "num_kv_heads": 1, name: value})
    ours = load_model(model, Tokenizer.load(tokenizer).hash)
    refused = []
    for export, out in (
        (lambda out: export_hugging_face(model, tokenizer, out), tmp_path / "hf"),
        (lambda out: export_gguf(model, tokenizer, out, "f32"), tmp_path / "gguf" / "model.gguf"),
    ):
        try:
            export(out)
        except UserError as error:
            assert f"model.{name}: expected " in str(error) and f"got {value}" in str(error)
            assert not out.exists() and not (tmp_path / "gguf").exists()
            refused.append(out)
            continue
        place = (out.parent, {"gguf_file": out.name}) if out.suffix else (out, {})
        theirs = AutoModelForCausalLM.from_pretrained(place[0], **place[1], dtype=torch.float32)
        ids = torch.randint(ours.vocab_size, (2, ours.config.context_length))
        torch.testing.assert_close(theirs(ids).logits, ours(ids), rtol=0, atol=1e-5)
    assert len(refused) in (0, 2)


def test_unknown_values_and_fields_are_refused_by_name(small):
    extended = dataclasses.make_dataclass(
        "Extended", [("attention_window", int)], bases=(ModelConfig,), frozen=True, kw_only=True
    )
    with pytest.raises(UserError, match=r"model.attention_window: not known to lm/export/llama.py"):
        check_layout(extended(**dataclasses.asdict(small), attention_window=64))
    with pytest.raises(UserError, match=r"model.norm: expected rmsnorm, got batchnorm"):
        check_layout(dataclasses.replace(small, norm="batchnorm"))


@pytest.mark.parametrize(
    "name", ["layers.0.attn.gate.weight", "layers.0.attn.q_proj.bias", "position_embeddings.weight", "x", "layers.0.x"]
)
def test_unknown_parameters_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"have no parameter {name}$"):
        llama_name(name)


def test_missing_parameters_are_refused_by_name(small):
    model = TransformerLM(small, vocab_size=61)
    model.layers[1].ln2 = nn.Identity()
    with pytest.raises(UserError, match=r"no parameter model.layers.1.post_attention_layernorm.weight"):
        llama_weights(model, half_split=True)


def test_norms_that_differ_in_eps_are_refused(small):
    model = TransformerLM(small, vocab_size=61)
    assert norm_eps(model) == 1e-5
    model.layers[1].ln2.eps = 1e-6
    with pytest.raises(UserError, match="expected one eps for all norms"):
        norm_eps(model)


def test_a_refusal_names_every_switch_and_the_expected_value(small):
    check_layout(dataclasses.replace(small, qk_norm=True, num_kv_heads=1, tie_embeddings=True))
    config = dataclasses.replace(small, norm="layernorm", norm_position="post", position="none", ffn="silu")
    with pytest.raises(UserError) as error:
        check_layout(config)
    for sentence in (
        "model.norm: expected rmsnorm, got layernorm",
        "model.norm_position: expected pre, got post",
        "model.position: expected rope, got none",
        "model.ffn: expected swiglu, got silu",
    ):
        assert sentence in str(error.value)
