"""Strings are read as `str.encode` encodes them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.tokenizer.text.fast import strings
from lm.tokenizer.text.fast.chunks import PADDING, SpecialTokens
from lm.tokenizer.text.fast.strings import StringSource, read_strings, string_layout
from lm.tokenizer.text.fast.tables import automaton_tables

pytestmark = pytest.mark.usefixtures("kernels")

# The largest characters of 1, 1, 2 and 4 bytes in memory, and those where the length of UTF-8 changes.
ALPHABETS = ["a\x7f", "a\x7f\x80\xff", "a\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff", "a\x80\u0800\U00010000\U0010ffff"]
TEXTS = st.one_of(*(st.text(st.sampled_from(alphabet), max_size=90) for alphabet in ALPHABETS))


class Text(str):
    """Its instances keep their characters somewhere else."""


def utf8_of(texts: list[str], begins: list[int], ends: list[int]) -> list[bytes]:
    num_bytes = 4 * sum(map(len, texts))
    buffer, buffer_ends = np.zeros(num_bytes + len(PADDING), np.uint8), np.zeros(len(texts), np.int64)
    read_strings(texts, np.array(begins, np.int64), np.array(ends, np.int64), buffer, buffer_ends)
    assert not buffer[num_bytes + 16 :].any(), "it should not write further"
    return [part.tobytes() for part in np.split(buffer, buffer_ends)[:-1]]


@pytest.mark.parametrize("in_place", [True, False])
@given(texts=st.lists(TEXTS, min_size=1, max_size=5), data=st.data())
def test_parts_of_strings_of_every_width(in_place: bool, texts: list[str], data: st.DataObject) -> None:
    begins = [data.draw(st.integers(0, len(text))) for text in texts]
    ends = [data.draw(st.integers(begin, len(text))) for begin, text in zip(begins, texts, strict=True)]
    expected = [text[begin:end].encode() for text, begin, end in zip(texts, begins, ends, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        if not in_place:  # as in a version of Python whose strings look different
            patch.setattr(strings, "string_layout", lambda: None)
        assert utf8_of(texts, begins, ends) == expected


@pytest.mark.parametrize("fill", ["a", "é", "本", "🙂"])
def test_every_position_in_a_block_of_characters(fill: str) -> None:
    for position in range(40):
        for character in "aé本🙂":
            text = fill * position + character + fill * 20
            assert utf8_of([text], [0], [len(text)]) == [text.encode()]


def test_this_version_of_python_has_a_known_layout() -> None:
    assert string_layout() is not None


def test_instances_of_subclasses_are_read_too() -> None:
    assert utf8_of([Text("abé本"), "c"], [1, 0], [4, 1]) == ["bé本".encode(), b"c"]


@pytest.mark.parametrize("half", ["\ud800", "\udfff"])
@pytest.mark.parametrize("after", ["", "x" * 40, "🙂"])
def test_half_of_a_surrogate_pair_is_an_error(half: str, after: str) -> None:
    text = "本" * 20 + half + after
    with pytest.raises(UnicodeEncodeError):
        utf8_of(["a", text], [0, 0], [1, len(text)])
    assert utf8_of([text], [0], [20]) == [("本" * 20).encode()], "the part before it can be read"


def test_what_is_not_a_string_is_an_error() -> None:
    with pytest.raises(AttributeError):
        utf8_of([b"bytes"], [0], [5])  # type: ignore[list-item]


@given(text=TEXTS, data=st.data())
def test_a_source_has_the_characters_of_the_text(text: str, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, len(text)))
    source = StringSource(text)
    buffer = np.zeros(source.max_bytes(begin, end) + len(PADDING), np.uint8)
    size = source.read(begin, end, buffer)
    assert size <= source.max_bytes(begin, end) and buffer[:size].tobytes() == text[begin:end].encode()


def test_a_split_is_a_position_in_characters() -> None:
    special = SpecialTokens.from_ids({})
    assert StringSource("本語 本 本語").find_split(1, 7, automaton_tables("gpt2"), special) == 4
    assert StringSource("本語本語").find_split(0, 4, automaton_tables("gpt2"), special) is None
    assert StringSource("本 \ud800 a").find_split(0, 5, automaton_tables("gpt2"), special) == 3
