import dataclasses
import json

import pytest
import torch

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


DAMAGES = [
    "cut weights",
    "pickle",
    "not json",
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
