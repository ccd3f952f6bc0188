"""Text to train on, a tokenizer trained on it, and what is known to be right."""

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import regex
import tiktoken

from lm.tokenizer.text.fast.build import load
from lm.tokenizer.text.pretokenization import PATTERNS, PreTokenizer
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training.bpe import Merges, build_vocab, count_pre_tokens, learn_merges

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
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
        ids = {token: token_id for token_id, token in tokenizer.vocab.items()}
        special_ids = {text: ids.pop(text.encode()) for text in tokenizer.special_tokens}
        pattern = PATTERNS[tokenizer.pattern]
        return tiktoken.Encoding("same", pat_str=pattern, mergeable_ranks=ids, special_tokens=special_ids)

    return build


@pytest.fixture(scope="session")
def kernels() -> SimpleNamespace:
    """The compiled kernels; loaded here, so that no test waits for a compiler."""
    return load()


@pytest.fixture(scope="session")
def naive_merges() -> Callable[[Mapping[str, int], int], Merges]:
    """The definition: count all pairs anew before each merge, take the most frequent, ties to the greater pair."""

    def learn(counts: Mapping[str, int], num_merges: int) -> Merges:
        words = {word: [bytes([byte]) for byte in word.encode()] for word in counts}
        merges: Merges = []
        while len(merges) < num_merges:
            pairs: Counter[tuple[bytes, bytes]] = Counter()
            for word, tokens in words.items():
                for pair in itertools.pairwise(tokens):
                    pairs[pair] += counts[word]
            if not pairs:
                break
            best = max(pairs, key=lambda pair: (pairs[pair], pair))
            merges.append(best)
            for tokens in words.values():
                place = 0
                while place < len(tokens) - 1:
                    if (tokens[place], tokens[place + 1]) == best:
                        tokens[place : place + 2] = [best[0] + best[1]]
                    place += 1
        return merges

    return learn


@pytest.fixture(scope="session")
def split_whole() -> Callable[..., list[str]]:
    """The definition, on the whole text at once: special tokens, the longest first; then the pattern."""

    def split(text: str, special_tokens: Sequence[str] = (), pattern: str = "gpt2") -> list[str]:
        longest_first = sorted(special_tokens, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text) if special_tokens else [text]
        pre_tokens: list[str] = []
        for part in parts:
            pre_tokens += [part] if part in special_tokens else regex.findall(PATTERNS.get(pattern, pattern), part)
        return [pre_token for pre_token in pre_tokens if pre_token]

    return split


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder of real texts beside the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA.name}: no real texts beside the project")
    return SHARED_DATA


@pytest.fixture(scope="session")
def gpt2(shared_data: Path) -> Tokenizer:
    folder = shared_data / "gpt2"
    return Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt", [END])
