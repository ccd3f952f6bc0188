from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.errors import UserError
from lm.tokenizer.text.pretokenization import PreTokenizer
from lm.tokenizer.training.bpe import count_pre_tokens, learn_merges, train_bpe

END = "<|endoftext|>"


def test_the_example_of_the_course_by_hand() -> None:
    text = "low low low low low lower lower widest widest widest newest newest newest newest newest newest"
    merges = learn_merges(Counter(text.split()), 6)
    assert [(left + right).decode() for left, right in merges] == ["st", "est", "ow", "low", "west", "ne"]


@given(counts=st.dictionaries(st.text(st.sampled_from("abcé"), min_size=1, max_size=12), st.integers(1, 5), max_size=8))
def test_merges_are_those_of_the_definition(naive_merges, counts: dict[str, int]) -> None:
    assert learn_merges(counts, 60) == naive_merges(counts, 60)


@given(text=st.text(max_size=60))
def test_merges_of_any_text_are_those_of_the_definition(naive_merges, text: str) -> None:
    counts = count_pre_tokens([text], PreTokenizer())
    assert learn_merges(counts, 30) == naive_merges(counts, 30)


def test_merges_of_a_corpus_are_those_of_the_definition(naive_merges, text: str) -> None:
    counts = count_pre_tokens([text], PreTokenizer("gpt2", [END]))
    assert learn_merges(counts, 250) == naive_merges(counts, 250)


def test_overlapping_pairs_merge_from_left_to_right() -> None:
    assert learn_merges({"aaaaa": 1}, 9) == [(b"a", b"a"), (b"aa", b"aa"), (b"aaaa", b"a")]


def test_ties_go_to_the_lexicographically_greater_pair_of_byte_strings(naive_merges) -> None:
    assert learn_merges({"ab": 3, "ac": 3, "ba": 3, "é!": 3}, 1) == [("é".encode()[:1], "é".encode()[1:])]
    # Not to the greater joined string: (a, cb) < (ac, a), though "acb" > "aca"; nor to the longer token.
    counts = {"acb": 2, "cb": 9, "ac": 9, "aca": 2}
    assert learn_merges(counts, 5) == naive_merges(counts, 5)


def test_counts_need_more_than_32_bits() -> None:
    assert learn_merges({"ab": 2**40, "cd": 2**40 + 1, "xy": 2**32 - 1}, 2) == [(b"c", b"d"), (b"a", b"b")]


def test_a_pre_token_of_a_hundred_thousand_letters_is_no_trap() -> None:
    merges = learn_merges({"ab" * 50_000: 1}, 100)
    assert [len(left + right) for left, right in merges][:4] == [2, 4, 8, 16]


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), pattern=st.sampled_from(["gpt2", "gpt4", r"\w+"]))
def test_the_counts_do_not_depend_on_the_chunks(text: str, sizes: list[int], pattern: str) -> None:
    part = text[:600]
    chunks = []
    while part:
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(part[:size])
        part = part[size:]
    pre_tokenizer = PreTokenizer(pattern, [END, "text|>ba", "\n\n"])
    assert count_pre_tokens(chunks, pre_tokenizer) == count_pre_tokens([text[:600]], pre_tokenizer)


def test_train_bpe_on_a_file(naive_merges, tmp_path: Path, text: str) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(text.encode())
    vocab, merges = train_bpe(str(path), 400, [END, "<|pad|>"])
    assert merges == naive_merges(count_pre_tokens([text], PreTokenizer("gpt2", [END])), 400 - 258)
    assert list(vocab) == list(range(400))
    assert vocab[0] == b"!" and {vocab[token_id] for token_id in range(256)} == {bytes([byte]) for byte in range(256)}
    assert [vocab[token_id] for token_id in range(256, 398)] == [left + right for left, right in merges]
    assert (vocab[398], vocab[399]) == (END.encode(), b"<|pad|>")
    assert not any(b"<|" in left + right for left, right in merges)


def test_text_that_runs_out_of_pairs_gives_fewer_tokens(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text(f"aa b{END}aa")
    vocab, merges = train_bpe(path, 1000, [END])
    assert merges == [(b"a", b"a"), (b" ", b"b")] and len(vocab) == 259
    path.write_text("")
    assert len(train_bpe(path, 1000, [END])[0]) == 257


@pytest.mark.parametrize(
    ("vocab_size", "special_tokens", "message"),
    [
        (256, [END], r"tokenizer\.vocab_size: expected at least 257 \(256 bytes and 1 special\), got 256"),
        (300, ["\n"], r"tokenizer\.special_tokens: expected two bytes or more, got '\\n'"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, vocab_size: int, special_tokens: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_bpe(tmp_path / "never read.txt", vocab_size, special_tokens)
