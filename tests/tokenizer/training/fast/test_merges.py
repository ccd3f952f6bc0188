"""The merges are those of the reference, for any division of the text and any number of threads."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.tokenizer import reference
from lm.tokenizer.encoding.vocab import Merges
from lm.tokenizer.text.fast import chunks
from lm.tokenizer.text.fast.strings import StringSource
from lm.tokenizer.text.fast.tables import automaton_tables
from lm.tokenizer.text.fast.text_file import FileSource
from lm.tokenizer.text.pretokenization import PreTokenizer
from lm.tokenizer.training import counting, merges
from lm.tokenizer.training.fast.counting import count_pre_tokens
from lm.tokenizer.training.fast.merges import learn_merges

pytestmark = pytest.mark.usefixtures("kernels")

END = "<|endoftext|>"
SPECIAL = [END, END + END, "<|", "|>ba", "ba ke"]
PARTS = [*SPECIAL, " ba", "ba", "ke", "'s", "é", "🙂", "\0", "\r\n", "   ", "1", "7", "thokeri" * 3, "ab" * 40, "!"]


def merges_of(
    text: str,
    num_merges: int,
    special_tokens: Sequence[str] = (),
    num_threads: int = 1,
    piece_length: int = 1 << 20,
) -> Merges:
    """Return the merges of a text that is read in pieces of `piece_length` characters."""
    with in_pieces_of(piece_length):
        counts = count_pre_tokens(StringSource(text), automaton_tables("gpt2"), special_tokens, num_threads)
        return learn_merges(counts, num_merges)


@contextmanager
def in_pieces_of(length: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_MIN_PIECE_LENGTH", length)
        patch.setattr(chunks, "_MAX_PIECE_LENGTH", length)
        yield


def reference_merges(text: str, num_merges: int, special_tokens: Sequence[str] = ()) -> Merges:
    pre_tokens = reference.pre_tokenize(text, special_tokens)
    return reference.learn_merges(Counter(token for token in pre_tokens if token not in special_tokens), num_merges)


def plain_merges(text: str, num_merges: int, special_tokens: Sequence[str] = ()) -> Merges:
    """Return the merges of the plain path, for texts that are too long for the reference."""
    counts = counting.count_pre_tokens([text], PreTokenizer("gpt2", special_tokens))
    return merges.learn_merges(counts, num_merges)


@settings(max_examples=100)
@given(
    words=st.dictionaries(st.text(st.sampled_from("abcé"), min_size=1, max_size=12), st.integers(1, 5), max_size=8),
    num_threads=st.sampled_from([1, 2, 3, 5]),
    piece_length=st.integers(1, 100),
)
def test_merges_of_counted_words(words: dict[str, int], num_threads: int, piece_length: int) -> None:
    text = " ".join(word for word, count in words.items() for _ in range(count))
    assert merges_of(text, 60, [], num_threads, piece_length) == reference_merges(text, 60)


@settings(max_examples=100)
@given(
    text=st.text(max_size=80) | st.lists(st.sampled_from(PARTS), max_size=40).map("".join),
    special_tokens=st.lists(st.sampled_from(SPECIAL), unique=True),
    num_threads=st.sampled_from([1, 2, 3, 5]),
    piece_length=st.integers(1, 100),
)
def test_merges_of_any_text(text: str, special_tokens: list[str], num_threads: int, piece_length: int) -> None:
    expected = reference_merges(text, 40, special_tokens)
    assert merges_of(text, 40, special_tokens, num_threads, piece_length) == expected


@settings(max_examples=200)
@given(text=st.text(st.sampled_from("ab"), max_size=60) | st.text(st.sampled_from("ab "), max_size=60))
def test_overlapping_pairs_and_ties(text: str) -> None:
    assert merges_of(text, 80) == reference_merges(text, 80)


def test_merges_by_hand() -> None:
    text = "low low low low low lower lower widest widest widest newest newest newest newest newest newest"
    parts = text.replace(" ", END)
    assert [(left + right).decode() for left, right in merges_of(parts, 6, [END])] == [
        "st", "est", "ow", "low", "west", "ne",
    ]  # fmt: skip
    assert merges_of("aaaaa", 9) == [(b"a", b"a"), (b"aa", b"aa"), (b"aaaa", b"a")]
    assert merges_of("abababab", 9) == [(b"a", b"b"), (b"ab", b"ab"), (b"abab", b"abab")]
    assert merges_of("abab", 1) == [(b"a", b"b")]
    assert merges_of("\0\0\0", 2) == [(b"\0", b"\0"), (b"\0\0", b"\0")]


def test_ties_go_to_the_lexicographically_greater_pair_of_byte_strings() -> None:
    assert merges_of(f"ab{END}ac{END}ba{END}é!"[:-1] + f"{END}", 1, [END]) == [("é".encode()[:1], "é".encode()[1:])]
    # Some tokens have the same first 8 bytes, some are a prefix of another, and some end with zero bytes.
    words = ["abcdefghij", "abcdefghik", "abcdefgh", "\0\0", "\0", "\0\0\0", "!\0", "!", "éé", "abcdefghijabcdefghik"]
    for seed in range(20):
        rng = random.Random(seed)
        text = END.join(rng.choices(words, k=40))
        assert merges_of(text, 90, [END]) == reference.learn_merges(Counter(text.split(END)), 90)


def test_ties_between_tokens_with_the_same_first_eight_bytes() -> None:
    # Both words become tokens first; then (..ba, x) is merged before (..az, x) because its ninth byte is greater.
    words = ["abcdefghaz", "abcdefghba"]
    text = END.join(words * 9 + [word + "x" for word in words] * 5)
    merges = merges_of(text, 100, [END])
    assert merges[-2:] == [(words[1].encode(), b"x"), (words[0].encode(), b"x")]


def test_empty_and_very_short_texts() -> None:
    assert merges_of("", 5) == merges_of("", 5, [END], num_threads=2) == []
    assert merges_of("a", 5) == merges_of(END, 5, [END]) == merges_of("a", 0) == merges_of("ab", 0) == []


def test_a_vocabulary_larger_than_the_text_allows(text: str) -> None:
    part = text[:1500]
    expected = reference_merges(part, 10_000, [END])
    assert len(expected) < 2000
    # The fewer merges are requested, the more of the rare pairs are left out at first.
    for num_merges in (1, 10, len(expected) - 1, len(expected), 10_000):
        assert merges_of(part, num_merges, [END]) == expected[:num_merges]


def test_rare_pairs_are_found_when_the_frequent_ones_run_out() -> None:
    # A few pairs occur very often, others 100 times, others once, so MIN_COUNT is lowered several times.
    text = " ba" * 200_000 + " kero" * 20_000 + "".join(f" x{number:04d}y" * 100 for number in range(50))
    text += "".join(f" {chr(97 + number % 26)}{chr(97 + number // 26 % 26)}q" for number in range(600))
    expected = plain_merges(text, 2000)
    for num_merges in (3, 6, 40, 2000):
        assert merges_of(text, num_merges) == expected[:num_merges]


@pytest.mark.parametrize("length", [2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 300])
def test_pre_tokens_of_every_length(length: int) -> None:
    rng = random.Random(length)
    words = ["".join(rng.choices("bak", k=length)) for _ in range(12)]
    # These differ in one letter.
    words += ["b" * (length - 1) + "k", "k" + "b" * (length - 1), "b" * (length // 2) + "k" + "b" * (length // 2)]
    text = END.join(rng.choices(words, k=50))
    assert merges_of(text, 40, [END]) == reference.learn_merges(Counter(text.split(END)), 40)


@pytest.mark.parametrize("unit", ["ab", " "])
def test_a_long_run_is_one_pre_token(unit: str) -> None:
    text = f"ba {unit * (200_000 // len(unit.encode()))} ke"
    expected = plain_merges(text, 60)
    assert merges_of(text, 60) == expected
    assert merges_of(text, 60, [], num_threads=2, piece_length=10_000) == expected


def test_a_long_pre_token_without_repetition(text: str) -> None:
    letters = ("".join(filter(str.isalpha, text)) * 20)[:100_000]
    assert merges_of(letters, 200) == plain_merges(letters, 200)


def test_a_pre_token_of_two_megabytes() -> None:
    # By hand: each merge halves a run of 2^21 letters.
    assert merges_of("a" * (1 << 21), 3) == [(b"a" * size, b"a" * size) for size in (1, 2, 4)]


def test_a_corpus_with_any_threads_and_pieces(text: str) -> None:
    words = "".join(f" {number:x}" for number in range(20_000))
    corpus = text * 2 + words + text.swapcase() * 2 + " " * 9999 + "thoke" * 9999 + text[::-1]
    expected = plain_merges(corpus, 2000, [END])
    assert len(expected) == 2000
    for num_threads, piece_length in ((1, 1 << 18), (2, 100_000), (3, 9973), (5, 1000)):
        assert merges_of(corpus, 2000, [END], num_threads, piece_length) == expected, (num_threads, piece_length)


def test_real_texts_give_the_merges_of_the_plain_path(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    with path.open("wb") as file:
        for source in sorted(shared_data.glob("*.txt")):
            part = source.read_bytes()[:50_000].decode(errors="ignore")
            file.write(part.encode() + END.encode())
    expected = plain_merges(path.read_bytes().decode(), 2000, [END])
    for num_threads, piece_length in ((1, 1 << 18), (2, 100_003)):
        with in_pieces_of(piece_length), FileSource.open(path, "counting") as source:
            counts = count_pre_tokens(source, automaton_tables("gpt2"), [END], num_threads)
        assert learn_merges(counts, 2000) == expected
