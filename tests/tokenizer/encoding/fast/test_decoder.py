from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.errors import UserError
from lm.tokenizer.tokenizer import Tokenizer

MODULE = "lm.tokenizer.encoding.codec"


@pytest.fixture(autouse=True, scope="module")
def compiled(kernels) -> Iterator[None]:
    """Decode even the shortest sequences with kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{MODULE}._MIN_LENGTH_TO_COMPILE", 0)
        yield


FORMS: dict[str, Callable] = {
    "list": list,
    "tuple": tuple,
    "generator": iter,
    "list of numpy numbers": lambda ids: list(np.array(ids, np.int64)),
    "uint16": lambda ids: np.array(ids, np.uint16),
    "int32": lambda ids: np.array(ids, np.int32),
    "uint32": lambda ids: np.array(ids, np.uint32),
    "int64": lambda ids: np.array(ids, np.int64),
    "uint64": lambda ids: np.array(ids, np.uint64),
    "big-endian": lambda ids: np.array(ids, ">u4"),
    "every second": lambda ids: np.repeat(np.array(ids, np.uint32), 2)[::2],
    "backwards": lambda ids: np.array(ids[::-1], np.uint32)[::-1],
}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=20)
@given(ids=st.lists(st.integers(0, 956)))
def test_any_ids_in_any_form_decode_as_in_tiktoken(
    tokenizer: Tokenizer, as_tiktoken, form: str, ids: list[int]
) -> None:
    theirs = as_tiktoken(tokenizer)
    assert tokenizer.vocab_size == 957
    assert tokenizer.decode_bytes(FORMS[form](ids)) == theirs.decode_bytes(ids)
    assert tokenizer.decode(FORMS[form](ids)) == theirs.decode(ids)


def test_half_a_million_ids(tokenizer: Tokenizer, text: str) -> None:
    ids = np.random.default_rng(1).integers(0, 957, 500_000)
    data = b"".join(tokenizer.vocab[token] for token in ids.tolist())
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.decode(ids) == data.decode(errors="replace")
    assert tokenizer.decode(tokenizer.encode_array(text)) == text


def test_tokens_of_every_length() -> None:
    tokens = {number: bytes([number]) for number in range(256)}
    tokens |= {256 + length: b"x" * (length + 2) for length in range(100)} | {356: "語".encode() * 99, 357: b""}
    tokenizer = Tokenizer(tokens, [])
    ids = [256, 7, 355, 357, 64, 356, 357, 300, 65] * 30
    assert tokenizer.decode_bytes(ids) == b"".join(tokens[token] for token in ids)


def test_bytes_that_are_not_utf8_decode_to_the_replacement_character(tokenizer: Tokenizer) -> None:
    first, *_ = tokenizer.encode("\u0915")
    assert tokenizer.decode([first] * 3) == "\ufffd" * 3
    assert tokenizer.decode_bytes([first]) == b"\xe0"
    assert tokenizer.decode(np.array([], np.uint16)) == tokenizer.decode([]) == tokenizer.decode(iter(())) == ""


@pytest.mark.parametrize("min_length", [0, 1 << 60], ids=["compiled", "plain"])
@pytest.mark.parametrize(
    "ids",
    [
        [5, 957], [5, -1], [5, 10**12], [5, 1 << 32], [5, (1 << 32) + 5], [5, -(1 << 70)], [5, 1 << 70],
        np.array([5, -1]), np.array([5, 957], np.uint16), np.array([5, 1 << 32]), np.array([5, (1 << 32) + 5]),
        np.array([5, (1 << 64) - 1], np.uint64), np.array([5, -128], np.int8),
    ],
    ids=repr,
)  # fmt: skip
def test_the_error_names_an_id_out_of_range(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, ids: list[int] | np.ndarray, min_length: int
) -> None:
    monkeypatch.setattr(f"{MODULE}._MIN_LENGTH_TO_COMPILE", min_length)
    monkeypatch.setattr(f"{MODULE}._MIN_TOTAL_LENGTH_TO_LOAD", min_length)
    for decode in (tokenizer.decode, tokenizer.decode_bytes):
        with pytest.raises(UserError, match=f"^token id: expected 0 to 956, got {int(ids[1])}$"):
            decode(ids)
    assert tokenizer.decode([5]) == tokenizer.vocab[5].decode()
