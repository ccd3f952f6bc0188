import importlib.util
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm.errors import UserError
from lm.export.gguf import export_gguf
from lm.export.llama import to_half_split
from lm.model.files import load_model, save_model
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer

END = "<|endoftext|>"
# When it reads a GGUF file, transformers assumes that Qwen3's heads are 128 wide.
QWEN3 = {"d_model": 256, "num_heads": 2, "num_kv_heads": 1, "qk_norm": True}
SWITCHES = [{"num_kv_heads": 2, "d_ff": 64}, {"tie_embeddings": True, "rope_theta": 500.0, "d_ff": 64}, QWEN3]


@pytest.fixture(params=SWITCHES, ids=["llama, grouped", "llama, tied", "qwen3"])
def saved(request, folders):
    model, tokenizer = folders(**request.param)
    return model, tokenizer, load_model(model, Tokenizer.load(tokenizer).hash)


@torch.no_grad()
def logits(path, ids):
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)(ids).logits


@torch.no_grad()
def test_transformers_computes_equal_logits_in_f32_and_the_same_argmax_in_f16(saved, tmp_path):
    model, tokenizer, ours = saved
    ids = torch.randint(ours.vocab_size, (64, ours.config.context_length))
    expected = ours(ids)
    export_gguf(model, tokenizer, tmp_path / "f32.gguf", "f32")
    torch.testing.assert_close(logits(tmp_path / "f32.gguf", ids), expected, rtol=0, atol=1e-5)
    export_gguf(model, tokenizer, tmp_path / "f16.gguf", "f16")
    same = logits(tmp_path / "f16.gguf", ids).argmax(-1) == expected.argmax(-1)
    assert same.float().mean() >= 0.99


def test_transformers_encodes_to_the_same_ids(folders, tokenizer, tmp_path, text):
    export_gguf(*folders(), tmp_path / "model.gguf", "f16")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert theirs(text).input_ids == [tokenizer.end_of_text_id, *tokenizer.encode(text)]
    assert gguf.GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.end_of_text_id, tokenizer.end_of_text_id)


def test_weights_are_only_rounded_to_their_type(folders, tokenizer, tmp_path):
    model, tokenizer_folder = folders(d_ff=64)
    weights = load_model(model, tokenizer.hash).layers[0].attn.q_proj.weight.detach().numpy()  # rows not permuted
    read = {}
    for kind in ("f32", "f16", "q8_0"):
        export_gguf(model, tokenizer_folder, tmp_path / kind, kind)
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / kind).tensors}
        read[kind] = gguf.dequantize(tensors["blk.0.attn_q.weight"].data, tensors["blk.0.attn_q.weight"].tensor_type)
        assert tensors["blk.0.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert np.array_equal(read["f32"], weights)
    assert np.array_equal(read["f16"], weights.astype(np.float16).astype(np.float32))
    # A row of 32 weights is one block with 127 steps on each side of zero. The error is at most half a step, plus the
    # rounding of the step itself to float16.
    steps = np.abs(read["q8_0"] - weights) / (np.abs(weights).max(axis=1, keepdims=True) / 127)
    assert 0.4 < steps.max() < 0.5 + 127 / 2**11


def test_only_qwen3_is_half_split(folders, tokenizer, tmp_path):
    for name, switches in {"llama": {}, "qwen3": {"qk_norm": True}}.items():
        model, tokenizer_folder = folders(**switches)
        (tmp_path / name).mkdir()
        export_gguf(model, tokenizer_folder, tmp_path / name / "model.gguf", "f32")
        reader = gguf.GGUFReader(tmp_path / name / "model.gguf")
        assert reader.fields["general.architecture"].contents() == name
        (k_proj,) = [tensor.data for tensor in reader.tensors if tensor.name == "blk.1.attn_k.weight"]
        weight = load_model(model, tokenizer.hash).layers[1].attn.k_proj.weight.detach()
        assert np.array_equal(k_proj, to_half_split(weight, 8) if name == "qwen3" else weight)


@pytest.mark.parametrize(
    ("switches", "weight_type", "message"),
    [
        ({"norm_position": "post"}, "f32", "model.norm_position: expected pre, got post"),
        ({"d_ff": 48}, "q8_0", "model.d_ff: q8_0 needs a multiple of 32, got 48"),
        ({"d_model": 40}, "q8_0", "model.d_model: q8_0 needs a multiple of 32, got 40"),
    ],
)
def test_unsupported_models_are_refused_before_writing(folders, tmp_path, switches, weight_type, message):
    with pytest.raises(UserError, match=message):
        export_gguf(*folders(**switches), tmp_path / "out" / "model.gguf", weight_type)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("reason", ["pattern", "merges"])
def test_unsupported_tokenizers_are_refused(folders, small, train_tokenizer, tmp_path, reason):
    model, tokenizer_folder = folders()
    if reason == "pattern":
        tokenizer, message = train_tokenizer("gpt4", [END]), "pattern: expected gpt2, llama3, qwen2, got 'gpt4'"
    else:
        tokenizer, message = Tokenizer({byte: bytes([byte]) for byte in range(256)}, [], [END]), "has no merges"
    save_model(model, TransformerLM(small, tokenizer.vocab_size), tokenizer.hash)
    tokenizer.save(tokenizer_folder)
    with pytest.raises(UserError, match=message):
        export_gguf(model, tokenizer_folder, tmp_path / "model.gguf", "f32")


def test_an_existing_file_is_not_overwritten(folders, tmp_path):
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        export_gguf(*folders(), tmp_path / "model.gguf", "f32")
    assert (tmp_path / "model.gguf").read_text() == "mine"


@pytest.mark.parametrize("name", ["", ".", "a link"])
def test_neither_a_folder_nor_a_link_is_overwritten(folders, tmp_path, monkeypatch, name):
    saved = folders()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("a link").symlink_to("nowhere")
    with pytest.raises(UserError, match="already exists"):
        export_gguf(*saved, Path(name), "f32")
    assert [path.name for path in Path().iterdir()] == ["a link"]


def test_the_umask_decides_who_can_read_the_file(folders, tmp_path):
    before = os.umask(0o027)
    try:
        export_gguf(*folders(), tmp_path / "model.gguf", "f32")
    finally:
        os.umask(before)
    assert (tmp_path / "model.gguf").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(("weight_type", "value"), [("f16", 70_000), ("q8_0", 10_000_000)])
def test_weights_that_the_type_cannot_hold_are_refused(folders, tokenizer, tmp_path, weight_type, value):
    model_folder, tokenizer_folder = folders(d_ff=64)
    model = load_model(model_folder, tokenizer.hash)
    model.lm_head.weight.data[3, 5] = value
    save_model(model_folder, model, tokenizer.hash)
    with pytest.raises(
        UserError, match=rf"lm_head\.weight has weights that {weight_type} cannot represent; export f32"
    ):
        export_gguf(model_folder, tokenizer_folder, tmp_path / "model.gguf", weight_type)
    export_gguf(model_folder, tokenizer_folder, tmp_path / "model.gguf", "f32")


def test_a_failed_write_leaves_no_file(folders, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", fail)
    with pytest.raises(UserError, match="the disk is full"):
        export_gguf(*folders(), tmp_path / "out" / "model.gguf", "f32")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_package_is_named(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="gguf is not installed; run: pip install gguf"):
        export_gguf(*folders(), tmp_path / "model.gguf", "f32")
