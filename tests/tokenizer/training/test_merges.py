from hypothesis import given
from hypothesis import strategies as st

from lm.tokenizer import reference
from lm.tokenizer.text.pretokenization import PreTokenizer
from lm.tokenizer.training.counting import count_pre_tokens
from lm.tokenizer.training.merges import learn_merges

END = "<|endoftext|>"


@given(counts=st.dictionaries(st.text(st.sampled_from("abcé"), min_size=1, max_size=12), st.integers(1, 5), max_size=8))
def test_merges_are_those_of_the_reference(counts: dict[str, int]) -> None:
    assert learn_merges(counts, 60) == reference.learn_merges(counts, 60)


@given(text=st.text(max_size=60))
def test_merges_of_any_text_are_those_of_the_reference(text: str) -> None:
    counts = count_pre_tokens([text], PreTokenizer())
    assert learn_merges(counts, 30) == reference.learn_merges(counts, 30)


def test_merges_of_a_corpus_are_those_of_the_reference(text: str) -> None:
    counts = count_pre_tokens([text[:30_000]], PreTokenizer("gpt2", [END]))
    assert learn_merges(counts, 250) == reference.learn_merges(counts, 250)


def test_overlapping_pairs_merge_from_left_to_right() -> None:
    assert learn_merges({"aaaaa": 1}, 9) == [(b"a", b"a"), (b"aa", b"aa"), (b"aaaa", b"a")]


def test_ties_go_to_the_lexicographically_greater_pair_of_byte_strings() -> None:
    assert learn_merges({"ab": 3, "ac": 3, "ba": 3, "é!": 3}, 1) == [("é".encode()[:1], "é".encode()[1:])]
    # Not to the greater concatenation: (a, cb) < (ac, a), though "acb" > "aca"; nor to the longer token.
    counts = {"acb": 2, "cb": 9, "ac": 9, "aca": 2}
    assert learn_merges(counts, 5) == reference.learn_merges(counts, 5)


def test_counts_may_exceed_32_bits() -> None:
    assert learn_merges({"ab": 2**40, "cd": 2**40 + 1, "xy": 2**32 - 1}, 2) == [(b"c", b"d"), (b"a", b"b")]


def test_a_pre_token_of_a_hundred_thousand_letters_takes_linear_time() -> None:
    merges = learn_merges({"ab" * 50_000: 1}, 100)
    assert [len(left + right) for left, right in merges][:4] == [2, 4, 8, 16]
