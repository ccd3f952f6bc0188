import importlib.util

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm.errors import UserError
from lm.export.gguf import export_gguf
from lm.export.llama import to_halves
from lm.model.files import load_model, save_model
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer

END = "<|endoftext|>"
# transformers takes Qwen3's heads to be 128 wide, whatever a GGUF file says.
QWEN3 = {"d_model": 256, "num_heads": 2, "num_kv_heads": 1, "qk_norm": True}
SWITCHES = [{"num_kv_heads": 2, "d_ff": 64}, {"tie_embeddings": True, "rope_theta": 500.0, "d_ff": 64}, QWEN3]


@pytest.fixture(params=SWITCHES, ids=["llama, grouped", "llama, tied", "qwen3"])
def trained(request, folders):
    model, tokenizer = folders(**request.param)
    return model, tokenizer, load_model(model, Tokenizer.load(tokenizer).hash)


@torch.no_grad()
def logits(path, ids):
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)(ids).logits


@torch.no_grad()
def test_transformers_gives_equal_logits_in_f32_and_the_same_argmax_in_f16(trained, tmp_path):
    model, tokenizer, ours = trained
    ids = torch.randint(ours.vocab_size, (64, ours.config.context_length))
    expected = ours(ids)
    export_gguf(model, tokenizer, tmp_path / "f32.gguf", "f32")
    torch.testing.assert_close(logits(tmp_path / "f32.gguf", ids), expected, rtol=0, atol=1e-5)
    export_gguf(model, tokenizer, tmp_path / "f16.gguf", "f16")
    same = logits(tmp_path / "f16.gguf", ids).argmax(-1) == expected.argmax(-1)
    assert same.float().mean() >= 0.99


def test_transformers_gives_the_same_ids(folders, tokenizer, tmp_path, text):
    export_gguf(*folders(), tmp_path / "model.gguf", "f16")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    assert theirs(text).input_ids == tokenizer.encode(text)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.end_of_text_id, tokenizer.end_of_text_id)


def test_weights_are_rounded_no_more_than_their_type_says(folders, tokenizer, tmp_path):
    model, tokenizer_folder = folders(d_ff=64)
    weights = load_model(model, tokenizer.hash).layers[0].attn.q_proj.weight.detach().numpy()  # its rows as they are
    read = {}
    for kind in ("f32", "f16", "q8_0"):
        export_gguf(model, tokenizer_folder, tmp_path / kind, kind)
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / kind).tensors}
        read[kind] = gguf.dequantize(tensors["blk.0.attn_q.weight"].data, tensors["blk.0.attn_q.weight"].tensor_type)
        assert tensors["blk.0.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert np.array_equal(read["f32"], weights)
    assert np.array_equal(read["f16"], weights.astype(np.float16).astype(np.float32))
    # A row of 32 is a block of 127 steps to each side: half a step, and the error of the step, which is a float16.
    steps = np.abs(read["q8_0"] - weights) / (np.abs(weights).max(axis=1, keepdims=True) / 127)
    assert 0.4 < steps.max() < 0.5 + 127 / 2**11


def test_only_qwen3_has_halves(folders, tokenizer, tmp_path):
    for name, switches in {"llama": {}, "qwen3": {"qk_norm": True}}.items():
        model, tokenizer_folder = folders(**switches)
        (tmp_path / name).mkdir()
        export_gguf(model, tokenizer_folder, tmp_path / name / "model.gguf", "f32")
        reader = gguf.GGUFReader(tmp_path / name / "model.gguf")
        assert reader.fields["general.architecture"].contents() == name
        (k_proj,) = [tensor.data for tensor in reader.tensors if tensor.name == "blk.1.attn_k.weight"]
        weight = load_model(model, tokenizer.hash).layers[1].attn.k_proj.weight.detach()
        assert np.array_equal(k_proj, to_halves(weight, 8) if name == "qwen3" else weight)


@pytest.mark.parametrize(
    ("switches", "weight_type", "message"),
    [
        ({"norm_position": "post"}, "f32", "model.norm_position is post and would have to be pre"),
        ({"d_ff": 48}, "q8_0", "model.d_ff is 48 and would have to be a multiple of 32"),
        ({"d_model": 40}, "q8_0", "model.d_model is 40"),
    ],
)
def test_what_llama_cpp_has_not_is_refused_before_anything_is_written(
    folders, tmp_path, switches, weight_type, message
):
    with pytest.raises(UserError, match=message):
        export_gguf(*folders(**switches), tmp_path / "out" / "model.gguf", weight_type)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lacking", ["pattern", "merges"])
def test_another_pattern_and_a_tokenizer_without_merges_are_refused(folders, small, train_tokenizer, tmp_path, lacking):
    model, tokenizer_folder = folders()
    if lacking == "pattern":
        tokenizer, message = train_tokenizer("gpt4", [END]), "pattern: gpt4 cannot be exported"
    else:
        tokenizer, message = Tokenizer({byte: bytes([byte]) for byte in range(256)}, [], [END]), "has no merges"
    save_model(model, TransformerLM(small, tokenizer.vocab_size), tokenizer.hash)
    tokenizer.save(tokenizer_folder)
    with pytest.raises(UserError, match=message):
        export_gguf(model, tokenizer_folder, tmp_path / "model.gguf", "f32")


def test_a_file_that_is_there_stays(folders, tmp_path):
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        export_gguf(*folders(), tmp_path / "model.gguf", "f32")
    assert (tmp_path / "model.gguf").read_text() == "mine"


def test_a_failed_write_leaves_nothing(folders, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", fail)
    with pytest.raises(UserError, match="the disk is full"):
        export_gguf(*folders(), tmp_path / "out" / "model.gguf", "f32")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_package_is_named(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="gguf is not installed; pip install gguf"):
        export_gguf(*folders(), tmp_path / "model.gguf", "f32")
