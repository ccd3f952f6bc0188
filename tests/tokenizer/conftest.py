"""Text to train on, and a tokenizer trained on it."""

import random
from collections.abc import Callable

import pytest
import tiktoken

from lm.tokenizer.pretokenization import PATTERNS, PreTokenizer
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training import build_vocab, count_pre_tokens, learn_merges

END = "<|endoftext|>"


def make_text(num_words: int, seed: int) -> str:
    """Documents of invented words, frequent ones first as in a language, in several scripts, with odd white space."""
    rng = random.Random(seed)
    syllables = ["ba", "ke", "ri", "tho", "un", "é", "ß", "щи", "本", "語", "🙂", "'s", "'Ll", "12", "007", "-", '."']
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(2000)]
    weights = [1 / rank for rank in range(1, 2001)]
    gaps = [" ", " ", " ", " ", "  ", ", ", "\n", "\n\n", " \n ", "\t", "\r\n", END]
    return "".join(word + rng.choice(gaps) for word in rng.choices(words, weights, k=num_words))


@pytest.fixture(scope="session")
def text() -> str:
    return make_text(20_000, seed=1)


@pytest.fixture(scope="session")
def trained(text: str) -> Callable[[str], Tokenizer]:
    """A tokenizer with a pattern, trained on `text`."""

    def train(pattern: str) -> Tokenizer:
        merges = learn_merges(count_pre_tokens([text], PreTokenizer(pattern, [END])), 700)
        return Tokenizer(build_vocab(merges, [END]), merges, [END], pattern)

    tokenizers = {pattern: train(pattern) for pattern in PATTERNS}
    return tokenizers.__getitem__


@pytest.fixture(scope="session")
def tokenizer(trained: Callable[[str], Tokenizer]) -> Tokenizer:
    return trained("gpt2")


@pytest.fixture(scope="session")
def as_tiktoken() -> Callable[[Tokenizer], tiktoken.Encoding]:
    """The same tokenizer in tiktoken."""

    def build(tokenizer: Tokenizer) -> tiktoken.Encoding:
        end_id = tokenizer.end_of_text_id
        ranks = {token: token_id for token_id, token in tokenizer.vocab.items() if token_id != end_id}
        pattern = PATTERNS[tokenizer.pattern]
        return tiktoken.Encoding("same", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: end_id})

    return build
