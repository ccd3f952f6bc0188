import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm.errors import UserError
from lm.export.hugging_face import export_hugging_face
from lm.model.files import load_model
from lm.tokenizer.tokenizer import Tokenizer

SWITCHES = [{}, {"num_kv_heads": 2, "tie_embeddings": True}, {"num_kv_heads": 1, "qk_norm": True, "rope_theta": 500.0}]


@pytest.fixture(params=SWITCHES, ids=["llama", "llama, grouped and tied", "qwen3"])
def exported(request, folders, tmp_path):
    model, tokenizer = folders(**request.param)
    export_hugging_face(model, tokenizer, tmp_path / "out")
    return load_model(model, Tokenizer.load(tokenizer).hash), tmp_path / "out"


@torch.no_grad()
def test_transformers_gives_equal_logits_and_continues_alike(exported):
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
def test_at_a_long_context_too_both_turn_by_the_same_angles(folders, tokenizer, tmp_path):
    """An angle of hundreds of radians shows every difference in rounding."""
    model, tokenizer_folder = folders(context_length=512)
    export_hugging_face(model, tokenizer_folder, tmp_path / "out")
    ids = torch.randint(tokenizer.vocab_size, (4, 512))
    expected = load_model(model, tokenizer.hash)(ids)
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits, expected, rtol=0, atol=1e-5
    )


def test_transformers_gives_the_same_ids_and_the_text_back(folders, tokenizer, tmp_path, text):
    export_hugging_face(*folders(), tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.encode(text)
    assert theirs(text).input_ids == ids
    assert theirs.decode(ids) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (
        *[tokenizer.end_of_text_id] * 2,
        len(tokenizer.vocab),
    )


@pytest.mark.parametrize(
    "switch",
    [{"norm_position": "post"}, {"norm": "none"}, {"norm": "layernorm"}, {"position": "learned"}, {"ffn": "silu"}],
)
def test_another_layout_is_refused_before_anything_is_written(folders, tmp_path, switch):
    ((name, value),) = switch.items()
    with pytest.raises(UserError, match=f"model.{name} is {value} and would have to be"):
        export_hugging_face(*folders(**switch), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_a_model_is_left_as_it_is(folders, tmp_path):
    model, tokenizer = folders()
    before = (model / "config.json").read_bytes()
    with pytest.raises(UserError, match="holds a model already"):
        export_hugging_face(model, tokenizer, model)
    assert (model / "config.json").read_bytes() == before


def test_a_card_that_cannot_be_written_stops_the_export(folders, tmp_path):
    with pytest.raises(UserError, match="train.json: cannot be read"):
        export_hugging_face(*folders(), tmp_path / "out", metrics=tmp_path / "train.json")
    assert not (tmp_path / "out").exists()
