import hashlib
from pathlib import Path

import pytest

from lm.errors import UserError
from lm.training.data import open_data
from tests.tokens.conftest import END, TEXTS, change, encode, make_tokenizer, write_text

TRAIN = [f"the cat{END}", f"a{END}the{END}", f"b{END}"]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """The token files of a train split in three shards, and of a val split whose distribution is known."""
    raw = write_text(tmp_path / "raw", {**TEXTS, "train": TRAIN}, entropy_bits=7.5)
    return encode(raw, make_tokenizer(), tmp_path / "tokens")


def test_the_data_of_both_splits(tokens: Path) -> None:
    tokenizer = make_tokenizer()
    data = open_data(tokens, tokenizer)
    assert tokenizer.decode(data.train[: len(data.train)]) == "".join(TRAIN)
    assert tokenizer.decode(data.val[: len(data.val)]) == TEXTS["val"][0]
    assert (data.val_text_bytes, data.val_entropy_bits) == (3, 7.5)


def test_the_entropy_is_known_for_some_texts_only(tokens: Path) -> None:
    change(tokens / "manifest.json", lambda manifest: manifest["splits"]["val"].pop("entropy_bits"))
    assert open_data(tokens, make_tokenizer()).val_entropy_bits is None


def test_the_identity_is_made_of_the_checksums_of_all_shards(tokens: Path) -> None:
    names = ["train-00000.bin", "train-00001.bin", "train-00002.bin", "val.bin"]
    checksums = [hashlib.sha256((tokens / name).read_bytes()).hexdigest() for name in names]
    assert open_data(tokens, make_tokenizer()).identity == " ".join(checksums)


def test_the_tokens_of_another_tokenizer_are_rejected(tokens: Path) -> None:
    with pytest.raises(UserError, match="tokens: the tokens were encoded by a different tokenizer"):
        open_data(tokens, make_tokenizer("gpt4"))
