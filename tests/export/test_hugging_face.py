import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm.errors import UserError
from lm.export.hugging_face import export_hugging_face
from lm.model.files import load_model, save_model
from lm.tokenizer.tokenizer import Tokenizer

SWITCHES = [{}, {"num_kv_heads": 2, "tie_embeddings": True}, {"num_kv_heads": 1, "qk_norm": True, "rope_theta": 500.0}]


@pytest.fixture(params=SWITCHES, ids=["llama", "llama, grouped and tied", "qwen3"])
def exported(request, folders, tmp_path):
    model, tokenizer = folders(**request.param)
    export_hugging_face(model, tokenizer, tmp_path / "out")
    return load_model(model, Tokenizer.load(tokenizer).hash), tmp_path / "out"


@torch.no_grad()
def test_transformers_computes_equal_logits_and_the_same_greedy_text(exported):
    ours, folder = exported
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.dtype == torch.float32
    ids = torch.randint(ours.vocab_size, (4, ours.config.context_length))
    torch.testing.assert_close(theirs(ids).logits, ours(ids), rtol=0, atol=1e-5)

    for prompt in ids[:, None, :4]:
        greedy = prompt
        while greedy.shape[1] < ours.config.context_length and greedy[0, -1] != theirs.config.eos_token_id:
            greedy = torch.cat((greedy, ours(greedy)[:, -1:].argmax(-1)), dim=1)
        assert theirs.generate(prompt, do_sample=False, max_length=ours.config.context_length).equal(greedy)


@torch.no_grad()
@pytest.mark.parametrize("saved_again", [False, True])
def test_the_greedy_continuation_of_a_prompt_is_that_of_a_document_that_begins_with_it(
    exported, tokenizer, tmp_path, saved_again
):
    ours, folder = exported
    if saved_again:
        AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "again")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "again" if saved_again else folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = [tokenizer.end_of_text_id, *tokenizer.encode("the boy")]
    prompt = theirs("the boy", return_tensors="pt")
    assert prompt.input_ids.tolist() == [expected] and prompt.attention_mask.tolist() == [[1] * len(expected)]
    while len(expected) < 14 and (len(expected) < 5 or expected[-1] != tokenizer.end_of_text_id):
        expected.append(int(ours(torch.tensor([expected]))[0, -1].argmax()))
    assert model.generate(**prompt, do_sample=False, max_length=14).tolist() == [expected]


@torch.no_grad()
def test_rope_uses_the_same_angles_at_a_long_context(folders, tokenizer, tmp_path):
    """Angles of hundreds of radians reveal every difference in rounding."""
    model, tokenizer_folder = folders(context_length=512)
    export_hugging_face(model, tokenizer_folder, tmp_path / "out")
    ids = torch.randint(tokenizer.vocab_size, (4, 512))
    expected = load_model(model, tokenizer.hash)(ids)
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits, expected, rtol=0, atol=1e-5
    )


def test_transformers_encodes_to_the_same_ids_and_decodes_them(folders, tokenizer, tmp_path, text):
    export_hugging_face(*folders(context_length=256), tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.encode(text)
    assert theirs(text).input_ids == [tokenizer.end_of_text_id, *ids]
    assert theirs(text, add_special_tokens=False).input_ids == ids
    assert theirs.decode(ids) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (
        *[tokenizer.end_of_text_id] * 2,
        len(tokenizer.vocab),
    )


def test_a_folder_that_contains_a_model_is_not_changed(folders, tmp_path):
    model, tokenizer = folders()
    before = (model / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"config\.json: already exists"):
        export_hugging_face(model, tokenizer, model)
    assert (model / "config.json").read_bytes() == before


@pytest.mark.parametrize("name", [".", "", "other"])
def test_a_folder_that_contains_anything_is_not_changed(folders, tmp_path, monkeypatch, name):
    saved = folders()
    (tmp_path / "checkout" / "other").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "checkout")
    for path in ("pyproject.toml", "other/tokenizer.json"):
        (tmp_path / "checkout" / path).write_text("mine")
    with pytest.raises(UserError, match="already exists; choose a new or empty folder"):
        export_hugging_face(*saved, Path(name))
    assert sorted(path.name for path in Path().rglob("*")) == ["other", "pyproject.toml", "tokenizer.json"]


def test_an_export_is_not_exported_over(folders, tmp_path):
    saved = folders()
    export_hugging_face(*saved, tmp_path / "out")
    with pytest.raises(UserError, match=r"README\.md: already exists"):
        export_hugging_face(*saved, tmp_path / "out")


def test_the_umask_decides_who_can_read_the_files(folders, tmp_path):
    before = os.umask(0o027)
    try:
        export_hugging_face(*folders(), tmp_path / "out")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o640}


def test_weights_that_are_not_finite_are_refused(folders, tokenizer, tmp_path):
    model_folder, tokenizer_folder = folders()
    model = load_model(model_folder, tokenizer.hash)
    model.lm_head.weight.data[3, 5] = torch.nan
    save_model(model_folder, model, tokenizer.hash)
    with pytest.raises(UserError, match=r"lm_head\.weight has weights that are not finite"):
        export_hugging_face(model_folder, tokenizer_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_readme_in_the_folder_is_not_overwritten(folders, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"README\.md: already exists"):
        export_hugging_face(*folders(), out)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("README.md", "mine")]


def test_nothing_is_written_if_a_file_for_the_model_card_is_missing(folders, tmp_path):
    with pytest.raises(UserError, match=r"train\.json: there is no such file"):
        export_hugging_face(*folders(), tmp_path / "out", metrics=tmp_path / "train.json")
    assert not (tmp_path / "out").exists()
