import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.tokenizer.text.fast.chunks import PADDING, SpecialTokens

AROUND_A_BLOCK_END = range(56, 72)

NOT_UTF8 = [
    b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xf0\x80\x80\x80",
    b"\xf0\x8f\xbf\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\xfe",
    b"\xc3", b"\xe4\xb8", b"\xf0\x9f\x99", b"\xf0\x9f", b"\xc3(", b"\xe4\xb8(", b"\xe4(", b"\xf0\x9f\x99(", b"\xf0(",
    b"\xe4\xb8\xc3\xa9", b"\xc3\xa9\xa9", b"\xf8\x88\x80\x80\x80",
]  # fmt: skip
# The first and the last code point of every length, and those next to the surrogates.
UTF8 = "\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff"


def position_by_python(data: bytes) -> int:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


@pytest.fixture(scope="module")
def find_invalid(kernels: SimpleNamespace) -> Callable[..., int]:
    def find(data: bytes, after: bytes = b"") -> int:
        return kernels.find_invalid_utf8(np.frombuffer(data + after + PADDING, np.uint8), len(data))

    return find


@settings(max_examples=250)
@given(
    parts=st.lists(st.text().map(str.encode) | st.binary(max_size=6) | st.sampled_from([*NOT_UTF8, UTF8.encode()])),
    shift=st.integers(0, 130),
)
def test_any_bytes_are_checked_as_in_python(find_invalid, parts: list[bytes], shift: int) -> None:
    data = b"x" * shift + b"".join(parts)
    assert find_invalid(data) == position_by_python(data)


@pytest.mark.parametrize("wrong", NOT_UTF8, ids=bytes.hex)
def test_invalid_sequences_at_every_offset(find_invalid, wrong: bytes) -> None:
    for offset in AROUND_A_BLOCK_END:
        for before in (b"x" * offset, "é".encode() * offset, b"x" * offset + "🙂".encode()):
            for after in (b"", b"x" * 70, "中".encode() * 30):
                data = before + wrong + after
                assert find_invalid(data) == position_by_python(data) < len(data)


def test_the_first_and_last_code_points_of_every_length_are_valid(find_invalid) -> None:
    for offset in AROUND_A_BLOCK_END:
        data = b"x" * offset + UTF8.encode()
        assert find_invalid(data) == len(data)


def test_every_pair_of_bytes_and_beginnings_of_longer_characters(find_invalid) -> None:
    for lead in range(0x7F, 256):
        for second in range(256):
            for data in (bytes([lead, second]), bytes([lead, second, 0x80]), bytes([lead, second, 0x80, 0xBF])):
                assert find_invalid(data) == position_by_python(data)


@pytest.mark.parametrize("after", [b"\x99\x82", b"\xff" * 64, "é".encode()])
def test_bytes_after_the_end_do_not_affect_the_result(find_invalid, after: bytes) -> None:
    for data in (b"ab", b"ab\xf0\x9f", b"x" * 63 + b"\xc3", b"x" * 64, b"", "🙂".encode()):
        assert find_invalid(data, after) == position_by_python(data)


# Overlapping special tokens: one is a prefix of another, one a suffix, one is inside another, and two overlap partly.
SPECIAL = ["<|a|>", "<|a|><|b|>", "|><|", "a|>x", "xx", "<|é🙂|>"]
PARTS = st.lists(st.sampled_from([*SPECIAL, "<|", "a", "|>", "x", " ", "é", "<|é"]), max_size=60).map("".join)


@pytest.fixture(scope="module")
def find_special(kernels: SimpleNamespace) -> Callable[..., int]:
    def find(data: bytes, begin: int, end: int, tokens: Sequence[str]) -> int:
        special = SpecialTokens.from_ids({token: number for number, token in enumerate(tokens)})
        buffer = np.frombuffer(data + PADDING, np.uint8)
        return kernels.find_special_position(buffer, begin, end, special.texts, special.bounds, special.num_tokens)

    return find


@settings(max_examples=250)
@given(
    text=PARTS,
    tokens=st.lists(st.sampled_from(SPECIAL), unique=True) | st.lists(st.text(min_size=1, max_size=4), unique=True),
    shift=st.integers(0, 70),
    bounds=st.tuples(st.integers(0, 300), st.integers(0, 300)).map(sorted),
)
def test_the_first_special_token_is_the_match_of_an_alternation(
    find_special, text: str, tokens: list[str], shift: int, bounds: list[int]
) -> None:
    data = b"-" * shift + text.encode() + "".join(tokens).encode()
    begin, end = (min(bound, len(data)) for bound in bounds)
    pattern = b"|".join(re.escape(token.encode()) for token in tokens) or rb"(?!)"
    match = re.search(pattern, data[begin:end])
    assert find_special(data, begin, end, tokens) == (begin + match.start() if match else end)


@pytest.mark.parametrize("token", ["<|endoftext|>", "ab", "é🙂", "x" * 100])
def test_a_special_token_at_every_offset_and_cut_by_the_end(find_special, token: str) -> None:
    size = len(token.encode())
    for offset in AROUND_A_BLOCK_END:
        data = b"-" * offset + token.encode() + b"-" * 9
        assert find_special(data, 0, len(data), [token, "<|", "no"]) == offset
        for end in range(offset, offset + size):
            assert find_special(data, 0, end, [token]) == end, "bytes after the end must not be seen"
        assert find_special(data, offset + 1, len(data), [token]) == len(data)


def test_without_special_tokens_there_is_none(find_special) -> None:
    assert find_special(b"\0\0a\0", 0, 4, []) == 4
