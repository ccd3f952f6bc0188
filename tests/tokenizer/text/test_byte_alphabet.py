import json
from pathlib import Path

import pytest
import tiktoken.load

from lm.tokenizer.text.byte_alphabet import BYTES_IN_ORDER, from_text, to_text


def test_the_characters_are_the_same_as_in_gpt2() -> None:
    # From GPT-2's vocab.json: its first ids, the space, the line feed, and its last byte.
    assert [to_text(bytes([byte])) for byte in BYTES_IN_ORDER[:3]] == ["!", '"', "#"]
    assert (to_text(b" "), to_text(b"\n"), to_text(b"\xad")) == ("Ġ", "Ċ", "Ń")
    assert (BYTES_IN_ORDER.index(ord(" ")), BYTES_IN_ORDER.index(ord("\n"))) == (220, 198)


def test_bytes_round_trip_and_each_has_a_different_printable_character() -> None:
    characters = to_text(bytes(range(256)))
    assert from_text(characters) == bytes(range(256))
    assert len(set(characters)) == 256 and characters.isprintable() and " " not in characters


def test_the_bytes_are_in_the_same_order_as_in_tiktoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\n")
    ids = {to_text(bytes([byte])): index for index, byte in enumerate(BYTES_IN_ORDER)} | {"he": 256}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(str(tmp_path / "merges.txt"), str(tmp_path / "vocab.json"))
    assert ranks == {bytes([byte]): index for index, byte in enumerate(BYTES_IN_ORDER)} | {b"he": 256}
