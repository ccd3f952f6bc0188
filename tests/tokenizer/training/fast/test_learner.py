"""Training by kernels: the merges are those of the definition, however the text is divided and whoever counts it."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.tokenizer.text.fast.text_file import read_blocks
from lm.tokenizer.text.pretokenization import PreTokenizer
from lm.tokenizer.training.bpe import Merges, count_pre_tokens, train_bpe
from lm.tokenizer.training.bpe import learn_merges as plain_learn_merges
from lm.tokenizer.training.fast.learner import learn_merges

pytestmark = pytest.mark.usefixtures("kernels")

END = "<|endoftext|>"
SPECIAL = [END, END + END, "<|", "|>ba", "ba ke"]
PARTS = [*SPECIAL, " ba", "ba", "ke", "'s", "é", "🙂", "\0", "\r\n", "   ", "1", "7", "thokeri" * 3, "ab" * 40, "!"]


def blocks_of(text: str, size: int) -> list[bytes]:
    """Blocks of `size` characters."""
    return [text[begin : begin + size].encode() for begin in range(0, len(text), size)]


def merges_of(text: str, num_merges: int, special_tokens: Sequence[str] = ()) -> Merges:
    return learn_merges([text.encode()], num_merges, special_tokens, num_threads=1)


def plain_merges(text: str, num_merges: int, special_tokens: Sequence[str] = ()) -> Merges:
    return plain_learn_merges(count_pre_tokens([text], PreTokenizer("gpt2", special_tokens)), num_merges)


@settings(max_examples=200, deadline=None)
@given(
    words=st.dictionaries(st.text(st.sampled_from("abcé"), min_size=1, max_size=12), st.integers(1, 5), max_size=8),
    num_threads=st.sampled_from([1, 2, 3, 5]),
    size=st.integers(1, 100),
)
def test_merges_are_those_of_the_definition(
    naive_merges, split_whole, words: dict[str, int], num_threads: int, size: int
) -> None:
    text = " ".join(word for word, count in words.items() for _ in range(count))
    expected = naive_merges(Counter(split_whole(text)), 60)
    assert learn_merges(blocks_of(text, size), 60, [], num_threads) == expected


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(max_size=80) | st.lists(st.sampled_from(PARTS), max_size=40).map("".join),
    special_tokens=st.lists(st.sampled_from(SPECIAL), unique=True),
    num_threads=st.sampled_from([1, 2, 3, 5]),
    size=st.integers(1, 100),
)
def test_merges_of_any_text_with_any_threads_and_chunks(
    naive_merges, split_whole, text: str, special_tokens: list[str], num_threads: int, size: int
) -> None:
    pre_tokens = Counter(token for token in split_whole(text, special_tokens) if token not in special_tokens)
    expected = naive_merges(pre_tokens, 40)
    assert learn_merges(blocks_of(text, size), 40, special_tokens, num_threads) == expected


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from("ab"), max_size=60) | st.text(st.sampled_from("ab "), max_size=60))
def test_overlapping_pairs_and_ties(naive_merges, split_whole, text: str) -> None:
    assert merges_of(text, 80) == naive_merges(Counter(split_whole(text)), 80)


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


def test_ties_go_to_the_lexicographically_greater_pair_of_byte_strings(naive_merges) -> None:
    assert merges_of(f"ab{END}ac{END}ba{END}é!"[:-1] + f"{END}", 1, [END]) == [("é".encode()[:1], "é".encode()[1:])]
    # Tokens that agree in their first 8 bytes, in all of the shorter one, and in bytes of zero at the end.
    words = ["abcdefghij", "abcdefghik", "abcdefgh", "\0\0", "\0", "\0\0\0", "!\0", "!", "éé", "abcdefghijabcdefghik"]
    for seed in range(20):
        rng = random.Random(seed)
        text = END.join(rng.choices(words, k=40))
        assert merges_of(text, 90, [END]) == naive_merges(Counter(text.split(END)), 90)


def test_ties_of_tokens_that_agree_in_their_first_eight_bytes() -> None:
    # Both words become tokens first; then (..ba, x) goes before (..az, x) for its ninth byte, though z > a.
    words = ["abcdefghaz", "abcdefghba"]
    text = END.join(words * 9 + [word + "x" for word in words] * 5)
    merges = merges_of(text, 100, [END])
    assert merges[-2:] == [(words[1].encode(), b"x"), (words[0].encode(), b"x")]


def test_a_text_of_the_shortest_kind() -> None:
    assert learn_merges([], 5, [], 1) == learn_merges([b""], 5, [END], 2) == []
    assert merges_of("a", 5) == merges_of(END, 5, [END]) == merges_of("a b"[:1], 0) == []
    assert merges_of("ab", 0) == []


def test_a_vocabulary_larger_than_the_text_allows(naive_merges, split_whole, text: str) -> None:
    part = text[:3000]
    expected = naive_merges(Counter(token for token in split_whole(part, [END]) if token != END), 10_000)
    assert len(expected) < 3000
    # The fewer pairs are asked for, the more of the rare ones are left out at first.
    for num_merges in (1, 10, len(expected) - 1, len(expected), 10_000):
        assert merges_of(part, num_merges, [END]) == expected[:num_merges]


def test_rare_pairs_are_found_when_the_frequent_ones_run_out(split_whole) -> None:
    # A few pairs that occur very often, others 100 times, others once: several rounds.
    text = " ba" * 200_000 + " kero" * 20_000 + "".join(f" x{number:04d}y" * 100 for number in range(50))
    text += "".join(f" {chr(97 + number % 26)}{chr(97 + number // 26 % 26)}q" for number in range(600))
    for num_merges in (3, 6, 40, 2000):
        assert merges_of(text, num_merges) == plain_merges(text, num_merges)


@pytest.mark.parametrize("length", [2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 300])
def test_pre_tokens_of_every_length(naive_merges, split_whole, length: int) -> None:
    rng = random.Random(length)
    words = ["".join(rng.choices("bak", k=length)) for _ in range(12)]
    # Alike but for one letter.
    words += ["b" * (length - 1) + "k", "k" + "b" * (length - 1), "b" * (length // 2) + "k" + "b" * (length // 2)]
    text = END.join(rng.choices(words, k=50))
    assert merges_of(text, 40, [END]) == naive_merges(Counter(text.split(END)), 40)


def many_words(num_words: int) -> str:
    """Distinct pre-tokens, some of them longer than a key, each a few times."""
    rng = random.Random(num_words)
    words = [f" {number:x}" + "é" * (number % 40 if number % 5 == 0 else 1) for number in range(num_words)]
    words += words[::2] + words[::7]
    rng.shuffle(words)
    return "".join(words)


def test_tables_grow_with_the_distinct_pre_tokens() -> None:
    text = many_words(150_000)
    expected = plain_merges(text, 600)
    for num_threads, size in ((1, 1 << 20), (3, 50_000)):
        assert learn_merges(blocks_of(text, size), 600, [], num_threads) == expected


@pytest.mark.parametrize("unit", ["ab", " "])
def test_a_pre_token_of_a_megabyte_is_no_trap(unit: str) -> None:
    text = f"ba {unit * (1_000_000 // len(unit.encode()))} ke"
    expected = plain_merges(text, 60)
    assert merges_of(text, 60) == expected
    assert learn_merges(blocks_of(text, 10_000), 60, [], 2) == expected


def test_a_pre_token_of_a_megabyte_without_repetition(text: str) -> None:
    letters = ("".join(filter(str.isalpha, text)) * 20)[:500_000]
    assert merges_of(letters, 200) == plain_merges(letters, 200)


def test_a_pre_token_of_sixteen_megabytes() -> None:
    # By hand: a run of 2^24 letters is halved with each merge.
    merges = learn_merges([b"a" * (1 << 24)], 3, [], 1)
    assert merges == [(b"a" * size, b"a" * size) for size in (1, 2, 4)]


@pytest.fixture(scope="module")
def corpus(text: str) -> str:
    """Some 3 MB, with more distinct pre-tokens than `text`."""
    return text * 8 + many_words(20_000) + text.swapcase() * 4 + " " * 9999 + "thoke" * 9999 + text[::-1] * 4


def test_merges_of_a_corpus_are_those_of_the_plain_trainer_with_any_threads_and_chunks(corpus: str) -> None:
    expected = plain_merges(corpus, 3000, [END])
    assert len(expected) == 3000 and len(corpus.encode()) > 3_000_000
    for num_threads, size in ((1, 1 << 18), (2, 100_000), (3, 9973), (5, 1000)):
        assert learn_merges(blocks_of(corpus, size), 3000, [END], num_threads) == expected, (num_threads, size)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_train_bpe_gives_the_same_by_either_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus: str, num_threads: int
) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(corpus[:700_000].encode())
    assert path.stat().st_size < 1 << 20 < 2 * path.stat().st_size
    plain = train_bpe(path, 500, [END, "<|pad|>"], num_threads=num_threads)
    monkeypatch.setattr("lm.tokenizer.training.bpe._BULK_BYTES", 0)
    assert train_bpe(path, 500, [END, "<|pad|>"], num_threads=num_threads) == plain


def test_real_texts_give_the_merges_of_the_plain_trainer(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    with path.open("wb") as file:
        for source in sorted(shared_data.glob("*.txt")):
            part = source.read_bytes()[:500_000].decode(errors="ignore")
            file.write(part.encode() + END.encode())
    text = path.read_bytes().decode()
    expected = plain_merges(text, 4000, [END])
    for num_threads, size in ((1, 1 << 18), (2, 100_003)):
        assert learn_merges(read_blocks(path, "counting", size), 4000, [END], num_threads) == expected
