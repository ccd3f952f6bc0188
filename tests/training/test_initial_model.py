import dataclasses
import errno
import math
import os
from pathlib import Path

import pytest
import torch

import lm.training.train
from lm.errors import UserError
from lm.model.files import save_model
from lm.model.transformer import TransformerLM
from lm.training.initial_model import check_initial_model, load_initial_model


@pytest.fixture
def refusal(run):
    """Check a folder; returns the message of the refusal."""

    def refusal(folder: str | Path) -> str:
        changed = dataclasses.replace(run, train=dataclasses.replace(run.train, initial_model=str(folder)))
        with pytest.raises(UserError) as error:
            check_initial_model(changed)
        assert str(error.value).startswith("train.initial_model: ") and "\n" not in str(error.value)
        return str(error.value)

    return refusal


def test_a_model_that_fits_is_checked_without_its_weights_and_loaded_with_them(run, tokenizer, tmp_path):
    model = TransformerLM(run.model, tokenizer.vocab_size)
    save_model(tmp_path, model, tokenizer.hash)
    changed = dataclasses.replace(run, train=dataclasses.replace(run.train, initial_model=str(tmp_path)))
    check_initial_model(changed)
    assert load_initial_model(changed, tokenizer).lm_head.weight.equal(model.lm_head.weight)
    (tmp_path / "model.safetensors").write_bytes(b"")
    check_initial_model(changed)
    with pytest.raises(UserError, match=r"train\.initial_model: .*model\.safetensors: damaged"):
        load_initial_model(changed, tokenizer)


def test_without_an_initial_model_there_is_nothing_to_check(run):
    assert run.train.initial_model == "none"
    check_initial_model(run)


def test_what_is_not_a_folder_of_a_model_is_named(refusal, tmp_path):
    assert "nowhere, which is not a folder" in refusal(tmp_path / "nowhere")
    assert "no\\nwhere, which is not a folder" in refusal("no\nwhere")
    assert "config.json: there is no such file" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert refusal(tmp_path).endswith(
        f"a model in the format of transformers; convert it with: lm import hf {tmp_path}"
    )


def test_an_unreadable_folder_is_not_a_missing_one(refusal, tmp_path, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", refuse)  # because root may read anything
    assert "config.json: cannot be read (Permission denied); check the path" in refusal(tmp_path)


def test_a_run_starts_from_the_initial_model(run, tokenizer, trained, undisturbed, tmp_path):
    _, first, _ = undisturbed(run)
    save_model(tmp_path / "model", first.model, tokenizer.hash)
    continued = dataclasses.replace(run, train=dataclasses.replace(run.train, initial_model=str(tmp_path / "model")))
    second = trained(continued)
    assert second.history[0]["val_loss"] == first.history[-1]["val_loss"]
    assert second.metrics["val_loss"] < first.metrics["val_loss"]


def test_an_initial_model_that_has_changed_begins_another_run(run, tokenizer, trained, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    continued = dataclasses.replace(run, train=dataclasses.replace(run.train, initial_model=str(folder), max_steps=1))
    names = []
    real = lm.training.train.fingerprint
    monkeypatch.setattr(lm.training.train, "fingerprint", lambda **facts: names.append(real(**facts)) or names[-1])
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        save_model(folder, TransformerLM(run.model, tokenizer.vocab_size), tokenizer.hash)
        trained(continued)
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    ("changes", "tokenizer_hash", "message"),
    [
        (
            {"d_ff": 64, "qk_norm": True},
            None,
            r"has a different configuration than params.yaml; set model.d_ff=64 model.qk_norm=True",
        ),
        ({}, "another", "trained with a different tokenizer"),
        (None, None, "train.initial_model: expected none or the folder of a model, got .*model, which is not a folder"),
    ],
)
def test_an_initial_model_that_does_not_fit_is_refused(
    run, tokenizer, trained, tmp_path, changes, tokenizer_hash, message
):
    folder = tmp_path / "model"
    if changes is not None:
        model = TransformerLM(dataclasses.replace(run.model, **changes), tokenizer.vocab_size)
        save_model(folder, model, tokenizer_hash or tokenizer.hash)
    continued = dataclasses.replace(run, train=dataclasses.replace(run.train, initial_model=str(folder)))
    with pytest.raises(UserError, match=message):
        trained(continued)


def test_an_initial_model_that_has_diverged_is_refused(run, tokenizer, trained, tmp_path):
    model = TransformerLM(run.model, tokenizer.vocab_size)
    model.lm_head.weight.data[0, 0] = math.nan
    save_model(tmp_path / "model", model, tokenizer.hash)
    continued = dataclasses.replace(run, train=dataclasses.replace(run.train, initial_model=str(tmp_path / "model")))
    with pytest.raises(UserError, match="train.initial_model: .* has weights that are not finite"):
        trained(continued)
