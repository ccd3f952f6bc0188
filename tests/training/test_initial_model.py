import dataclasses
import errno
import os
from pathlib import Path

import pytest

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
