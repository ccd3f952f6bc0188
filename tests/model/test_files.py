import dataclasses
import errno
import json
import math
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lm.errors import UserError
from lm.model.files import load_model, save_model
from lm.model.transformer import TransformerLM


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_a_model_comes_back_with_its_configuration(small, tmp_path, tie_embeddings):
    model = TransformerLM(dataclasses.replace(small, tie_embeddings=tie_embeddings), vocab_size=61)
    save_model(tmp_path / "model", model, "hash")
    loaded = load_model(tmp_path / "model", "hash")
    assert loaded.config == model.config and loaded.vocab_size == 61 and not loaded.training
    ids = torch.randint(61, (2, 9))
    assert loaded(ids).equal(model(ids))


def test_a_model_of_another_tokenizer_is_refused(small, tmp_path):
    save_model(tmp_path, TransformerLM(small, 61), "one")
    with pytest.raises(UserError, match="trained with a different tokenizer"):
        load_model(tmp_path, "another")


def test_a_missing_model_names_the_stage_that_makes_it(tmp_path):
    with pytest.raises(UserError, match="no trained model; train one with: dvc repro train"):
        load_model(tmp_path, "hash")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_who_can_read_the_files(small, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save_model(tmp_path / "model", TransformerLM(small, 61), "hash")
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {
        "model.safetensors": mode,
        "config.json": mode,
    }


def test_a_failed_write_keeps_the_old_file(small, tmp_path):
    save_model(tmp_path, TransformerLM(small, 61), "hash")
    before = (tmp_path / "model.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"model\.safetensors: cannot be written \(.*File too large"):
            save_model(tmp_path, TransformerLM(small, 61), "hash")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_unreadable_file_is_not_a_missing_one(small, tmp_path, monkeypatch, name):
    save_model(tmp_path, TransformerLM(small, 61), "hash")
    opened = Path.open

    def refuse(path, *args, **kwargs):
        if path.name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)  # because root may read anything
    with pytest.raises(UserError) as error:
        load_model(tmp_path, "hash")
    assert str(error.value) == (
        f"{tmp_path / name}: cannot be read (Permission denied); check the path and its permissions"
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_named_pipe_is_not_waited_for(small, tmp_path, name):
    save_model(tmp_path, TransformerLM(small, 61), "hash")
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: expected a file, got a device or pipe"):
        load_model(tmp_path, "hash")


def test_a_model_in_the_format_of_transformers_is_sent_to_the_import(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 32}')
    with pytest.raises(UserError) as error:
        load_model(tmp_path, "hash")
    assert str(error.value) == (
        f"{tmp_path / 'config.json'}: a model in the format of transformers; convert it with: lm import hf {tmp_path}"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 10_000}, "config.json, which describes a model of 87,683,936 parameters, got 21,472"),
        ({"d_model": 40_000}, "config.json, which describes a model of "),
        ({"num_layers": 100_000}, "model.num_layers: expected at most 16,384, got 100000"),
        ({"num_layers": 10**30}, "model.num_layers: expected at most 16,384, got 1000"),
        ({"d_model": 1e30}, "model.d_model: expected a whole number, got 1e+30"),
        ({"position": "alibi"}, "model.position: expected 'rope' | 'learned' | 'none', got 'alibi'"),
        ({"rope_theta": math.nan}, "model.rope_theta: expected a number, got nan"),
        ({"qk_norm": []}, "model.qk_norm: expected true or false, got []"),
        ({"context_length": True}, "model.context_length: expected a whole number, got True"),
        ({"context_length": 2**40}, "model.context_length: expected at most 16,777,216, got"),
        ({"num_kv_heads": 3}, "model.num_kv_heads: expected a divisor of num_heads = 4, got 3"),
    ],
    ids=str,
)
def test_a_configuration_is_compared_with_the_weights_before_a_model_is_built(
    small, tmp_path, monkeypatch, changes, message
):
    save_model(tmp_path, TransformerLM(small, 61), "hash")
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "model": {**values["model"], **changes}}))
    monkeypatch.setattr("lm.model.files.TransformerLM", None)
    with pytest.raises(UserError) as error:
        load_model(tmp_path, "hash")
    assert message in str(error.value)


def test_memory_that_is_not_there_is_not_damage(small, tmp_path, monkeypatch):
    save_model(tmp_path, TransformerLM(small, 61), "hash")
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"context_length": 16', '"context_length": 1000000'))
    monkeypatch.setattr("lm.model.files.available_memory", lambda *_: {"CPU": 10**8})
    monkeypatch.setattr("lm.model.files.TransformerLM", None)
    with pytest.raises(UserError) as error:
        load_model(tmp_path, "hash")
    # Weights of 4 bytes, and four tables of 1,000,000 x 8 numbers.
    assert str(error.value) == (
        f"{tmp_path}: the model, of 21,472 parameters and a context of 1,000,000 tokens, needs 128,085,888 bytes of "
        "memory, but 100,000,000 are free"
    )


def test_an_allocation_that_failed_is_not_damage(small, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    save_model(tmp_path, TransformerLM(small, 61), "hash")
    monkeypatch.setattr("lm.model.files.TransformerLM", fail)
    with pytest.raises(UserError, match=r"tokens, needs 87,936 bytes of memory, which cannot be allocated$"):
        load_model(tmp_path, "hash")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(small, tmp_path, value):
    model = TransformerLM(small, 61)
    model.layers[1].ffn.w2.weight.data[3, 5] = value
    save_model(tmp_path, model, "hash")
    with pytest.raises(UserError, match=r"layers\.1\.ffn\.w2\.weight has weights that are not finite"):
        load_model(tmp_path, "hash")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.int8, torch.float64])
def test_only_types_that_float32_represents_exactly_are_loaded(small, tmp_path, kind):
    model = TransformerLM(small, 61)
    save_model(tmp_path, model, "hash")
    weights = {name: weight.detach().to(kind) for name, weight in model.named_parameters()}
    save_file(weights, tmp_path / "model.safetensors")
    if kind in (torch.bfloat16, torch.float16):
        assert load_model(tmp_path, "hash").lm_head.weight.equal(weights["lm_head.weight"].float())
        return
    with pytest.raises(UserError, match=r"model\.safetensors: .* expected F32, F16, BF16, got [IF]"):
        load_model(tmp_path, "hash")


DAMAGES = [
    "cut weights",
    "pickle",
    "not json",
    "null",
    "nothing",
    "no tokenizer",
    "unknown key",
    "unknown norm",
    "unknown position",
    "text for a number",
    "other shape",
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_in_one_line(small, tmp_path, damage):
    model = TransformerLM(small, 61)
    save_model(tmp_path, model, "hash")
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    values = json.loads(config.read_text())
    if damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "pickle":
        torch.save(model.state_dict(), weights)
    elif damage == "not json":
        config.write_text("{")
    elif damage in ("null", "nothing"):
        config.write_text({"null": "null", "nothing": "{}"}[damage])
    elif damage == "no tokenizer":
        config.write_text(json.dumps({key: value for key, value in values.items() if key != "tokenizer_hash"}))
    elif damage == "unknown key":
        config.write_text(json.dumps({**values, "model": {**values["model"], "surprise": 1}}))
    elif damage in ("unknown norm", "unknown position", "text for a number"):
        change = {"unknown norm": {"norm": "batchnorm"}, "unknown position": {"position": "alibi"}}
        config.write_text(json.dumps({**values, "model": {**values["model"], **change.get(damage, {"d_ff": "48"})}}))
    else:
        config.write_text(json.dumps({**values, "vocab_size": 62}))
    with pytest.raises(UserError) as error:
        load_model(tmp_path, "hash")
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
