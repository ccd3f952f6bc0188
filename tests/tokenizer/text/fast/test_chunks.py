import itertools
import os
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.errors import UserError
from lm.tokenizer.reference import pre_tokenize
from lm.tokenizer.text.fast.chunks import (
    SpecialTokens,
    find_split,
    piece_length,
    resolve_num_threads,
    split_blocks,
    split_source,
)
from lm.tokenizer.text.fast.strings import StringSource
from lm.tokenizer.text.fast.tables import automaton_tables
from lm.tokenizer.text.patterns import PATTERNS

# One is a prefix of another, one a suffix, and several contain a position where other text could be split.
SPECIAL = ["<|a|>", "<|a|><|b|>", "|><|", "a|>x", "a b", "b ", "x x x", " c"]
GPT2 = automaton_tables("gpt2")
TOKENS = st.lists(st.sampled_from(SPECIAL), unique=True)
TEXTS = st.lists(
    st.sampled_from([*SPECIAL, "<|", "a", "|>", "x", " ", "  ", "\n", "'l", "l", "é", "12", "7", "٣", "🙂"])
).map("".join) | st.text(st.sampled_from("ab '\n1é中!🙂\u3000sl"), max_size=60)


def in_blocks(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """Yield blocks of the given sizes in turn, enlarged where they would split a character."""
    begin = 0
    for size in itertools.cycle(sizes):
        if begin == len(data):
            return
        end = min(begin + size, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end += 1
        yield data[begin:end]
        begin = end


def special_tokens(tokens: Sequence[str]) -> SpecialTokens:
    return SpecialTokens.from_ids(dict.fromkeys(tokens, 0))


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=250)
@given(before=TEXTS, text=TEXTS, after=TEXTS, tokens=TOKENS)
def test_text_may_be_split_whatever_precedes_and_follows_it(
    pattern: str, before: str, text: str, after: str, tokens: list[str]
) -> None:
    split = partial(pre_tokenize, pattern=PATTERNS[pattern])
    data = text.encode()
    position = find_split(data, automaton_tables(pattern), special_tokens(tokens))
    assert 0 <= position < max(1, len(data))
    if position:
        left, right = before + data[:position].decode(), data[position:].decode() + after
        assert split(left, tokens) + split(right, tokens) == split(left + right, tokens)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        # Before white space, and where a run of letters or of numbers ends.
        ("one two three", 7), ("it's 2  \n", 6), ("中é٣!", 7), ("in 1984", 2), ("a1", 1), ("1a", 1), ("!? ?!", 2),
        ("!a", 1), ("'a", 1),
        # A run of white space may include the next space; a contraction or the preceding space may belong to a word.
        ("", 0), ("a", 0), ("aaaa", 0), ("123", 0), (" a", 0), ("   ", 0), ("!?", 0), ("'s", 0), ("'r", 0), (" !", 0),
    ],
)  # fmt: skip
def test_splits_by_hand(text: str, position: int) -> None:
    assert find_split(text.encode(), GPT2, special_tokens([])) == position


@pytest.mark.parametrize(
    ("text", "tokens", "position"),
    [
        # The last three characters might begin "o xy", and the first three end it.
        ("one two one two", ["o xy"], 11),
        ("one two", ["o xy"], 0),
        ("one two one two ", ["o o"], 11),
        ("a one two, one none ", ["o o", "e n"], 13),
        # Before a special token, unless another one begins earlier and overlaps it.
        ("---<|a|><|a|><|a|>---", ["<|a|>"], 13),
        ("---<|a|>---", ["<|a|>", "-<|a"], 0),
        ("xxxxxxxx", ["xx"], 0),
        ("xyxyxyx", ["xy"], 4),
        ("xyxyxyx", ["xy", "yx"], 0),
    ],
)
def test_splits_beside_special_tokens_by_hand(text: str, tokens: list[str], position: int) -> None:
    assert find_split(text.encode(), GPT2, special_tokens(tokens)) == position


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=TEXTS, tokens=TOKENS, sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_chunks_have_the_same_pre_tokens(pattern: str, text: str, tokens: list[str], sizes: list[int]) -> None:
    split = partial(pre_tokenize, pattern=PATTERNS[pattern])
    blocks = in_blocks(text.encode(), sizes)
    parts = [part.decode() for part in split_blocks(blocks, automaton_tables(pattern), special_tokens(tokens))]
    assert "".join(parts) == text and all(parts)
    assert [token for part in parts for token in split(part, tokens)] == split(text, tokens)


@given(text=TEXTS, tokens=TOKENS, length=st.integers(1, 40))
def test_pieces_have_the_same_pre_tokens(text: str, tokens: list[str], length: int) -> None:
    pieces = list(split_source(StringSource(text), length, GPT2, special_tokens(tokens)))
    parts = [text[begin:end] for begin, end in pieces]
    assert "".join(parts) == text and all(parts)
    assert [token for part in parts for token in pre_tokenize(part, tokens)] == pre_tokenize(text, tokens)


@pytest.mark.parametrize("unit", ["", "<|endoftext|>", "!? ", "a1", "\U0003d000 "])
def test_pieces_have_about_the_requested_length(text: str, unit: str) -> None:
    source = StringSource(unit * 50_000 or text)
    pieces = list(split_source(source, 1000, GPT2, special_tokens(["<|endoftext|>"])))
    assert max(end - begin for begin, end in pieces) < 2000 and len(pieces) > 0.8 * source.length / 1000


@pytest.mark.parametrize("unit", ["a", " ", "🙂", "a b"])
def test_a_text_without_a_place_to_split_is_one_piece(unit: str) -> None:
    source = StringSource(unit * (1_000_000 // len(unit)))
    assert list(split_source(source, 1000, GPT2, special_tokens(["a ba", "b a"]))) == [(0, source.length)]


def test_there_are_several_pieces_per_thread_unless_they_would_be_too_short() -> None:
    assert piece_length(10**9, 2) == 1 << 20
    assert piece_length(8 * 10**6, 2) == 500_000
    assert piece_length(10**6, 2) == 1 << 18
    assert piece_length(10**6, 1) == 1 << 20  # one thread waits for no other


@pytest.mark.parametrize("unit", ["", "<|endoftext|>", "!? ", "a1", "\U0003d000 "])
def test_chunks_have_about_the_size_of_the_blocks(text: str, unit: str) -> None:
    data = (unit * 50_000 or text).encode()
    parts = list(split_blocks(in_blocks(data, [1000]), GPT2, special_tokens(["<|endoftext|>"])))
    assert max(map(len, parts)) < 2000 and len(parts) > 0.8 * len(data) / 1000


@pytest.mark.parametrize("unit", ["a", " ", "🙂", "a b"])
def test_text_without_a_place_to_split_stays_whole_in_linear_time(unit: str) -> None:
    data = (unit * (1_000_000 // len(unit))).encode()
    assert list(split_blocks(in_blocks(data, [1000]), GPT2, special_tokens(["a ba", "b a"]))) == [data]


def test_empty_blocks() -> None:
    assert list(split_blocks([b"", b""], GPT2, special_tokens(["<|a|>"]))) == []
    assert b"".join(split_blocks([b"", b"one two", b"", b" three"], GPT2, special_tokens([]))) == b"one two three"


def test_special_tokens_are_sorted_by_their_first_byte_then_the_longest_first() -> None:
    special = SpecialTokens.from_ids({"<|a": 7, "[x]": 5, "<|a|>": 9, "[": 4})
    tokens = [special.texts[begin:end].tobytes() for begin, end in itertools.pairwise(special.bounds)]
    assert tokens == [b"<|a|>", b"<|a", b"[x]", b"["]
    assert special.ids.tolist() == [9, 7, 5, 4] and (special.num_tokens, special.longest) == (4, 5)
    assert (SpecialTokens.from_ids({}).num_tokens, SpecialTokens.from_ids({}).longest) == (0, 1)


def test_the_number_of_threads() -> None:
    assert 1 <= resolve_num_threads(None, 10**9) <= (os.cpu_count() or 1)
    assert resolve_num_threads(7, 10**9) == 7
    assert resolve_num_threads(7, 10**6) == 1
    assert resolve_num_threads(7, 10**7) == 3
    for number in (0, -1):
        with pytest.raises(UserError, match=f"num_threads: expected 1 or more, got {number}"):
            resolve_num_threads(number, 10**9)
