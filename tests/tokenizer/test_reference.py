"""The reference against tiktoken, Hugging Face's trainer, and examples worked by hand."""

import json
import random
from collections import Counter

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from lm.tokenizer import reference
from lm.tokenizer.text.byte_alphabet import from_text
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.tokenizer import Tokenizer

END = "<|endoftext|>"


def test_pre_tokens_by_hand() -> None:
    assert reference.pre_tokenize("I'll  go  \n to 3 p.m.!") == [
        "I", "'ll", " ", " go", "  \n", " to", " 3", " p", ".", "m", ".!",
    ]  # fmt: skip
    assert reference.pre_tokenize(f"a {END}b", [END]) == ["a", " ", END, "b"]
    assert reference.pre_tokenize(f"a{END}{END}b", ["<|", END, END + END]) == ["a", END + END, "b"]
    assert reference.pre_tokenize("") == []


def test_merges_of_the_course_example() -> None:
    # CS336, assignment 1, section 2.4: the course splits this text at white space.
    text = "low low low low low lower lower widest widest widest newest newest newest newest newest newest"
    merges = reference.learn_merges(Counter(text.split()), 6)
    assert [(left + right).decode() for left, right in merges] == ["st", "est", "ow", "low", "west", "ne"]


def test_ties_go_to_the_lexicographically_greater_pair_of_byte_strings() -> None:
    assert reference.learn_merges({"ab": 3, "ac": 3, "ba": 3}, 1) == [(b"b", b"a")]
    assert reference.learn_merges({"ab": 3, "é!": 3}, 1) == [("é".encode()[:1], "é".encode()[1:])]
    # (b, a) and (ba, c) are compared token by token: "ba" > "b" although "bac" < "bba".
    assert reference.learn_merges({"ba": 9, "bac": 2, "bba": 2}, 2) == [(b"b", b"a"), (b"ba", b"c")]


def test_overlapping_pairs_merge_from_left_to_right() -> None:
    assert reference.merge([b"a"] * 5, (b"a", b"a")) == [b"aa", b"aa", b"a"]
    assert reference.learn_merges({"aaaaa": 1}, 9) == [(b"a", b"a"), (b"aa", b"aa"), (b"aaaa", b"a")]


def test_training_by_hand() -> None:
    vocab, merges = reference.train(f"ab ab{END}abc", 256 + 2 + 1, [END])
    assert merges == [(b"a", b"b"), (b"ab", b"c")]
    assert {token_id: vocab[token_id] for token_id in (0, 220, 256, 257, 258)} == {
        0: b"!", 220: b" ", 256: b"ab", 257: b"abc", 258: END.encode(),
    }  # fmt: skip
    vocab, merges = reference.train(f"aa b{END}aa", 1000, [END])
    assert merges == [(b"a", b"a"), (b" ", b"b")] and len(vocab) == 259


def test_encoding_by_hand() -> None:
    merges = [(b"b", b"c"), (b"a", b"b"), (b"bc", b"d")]
    vocab = dict(enumerate([bytes([byte]) for byte in range(256)] + [b"bc", b"ab", b"bcd", END.encode()]))
    assert reference.encode("abcd", vocab, merges) == [97, 258]
    assert reference.encode("abab", vocab, merges) == [257, 257]
    assert reference.encode(f"cbad{END}", vocab, merges, [END]) == [99, 98, 97, 100, 259]
    assert reference.decode([97, 258, 259], vocab) == f"abcd{END}"
    assert reference.decode([0xC3], vocab) == "\ufffd"


def test_merges_are_those_of_hugging_face() -> None:
    # Ties go to another pair there, so in this text no two pairs that come up for merging are equally frequent.
    rng = random.Random(6)
    words = ["".join(rng.choices("etaoins", [90, 65, 47, 34, 24, 17, 12], k=rng.randint(1, 7))) for _ in range(3000)]
    text = " ".join(words)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 30, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.train_from_iterator([text], trainer)
    expected = [(from_text(left), from_text(right)) for left, right in json.loads(theirs.to_str())["model"]["merges"]]
    _, merges = reference.train(text, 256 + 30)
    assert merges == expected and len(merges) == 30


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
@settings(max_examples=25)
@given(text=st.text(st.sampled_from("bakeriunthoé 's1\n本🙂"), max_size=40) | st.text(max_size=20))
def test_ids_are_those_of_tiktoken(trained, as_tiktoken, pattern: str, text: str) -> None:
    tokenizer: Tokenizer = trained(pattern)
    text = f"{text}{END}{text}"
    ids = reference.encode(text, tokenizer.vocab, tokenizer.merges, [END], PATTERNS[pattern])
    assert ids == as_tiktoken(tokenizer).encode(text, allowed_special="all")
    assert reference.decode(ids, tokenizer.vocab) == text
