"""Text to train on, tokenizers, and the compiled kernels."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiktoken
from hypothesis import settings

from lm.tokenizer.encoding import fast as fast_encoding
from lm.tokenizer.encoding.vocab import build_vocab
from lm.tokenizer.text import fast as fast_text
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.text.pretokenization import PreTokenizer
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokenizer.training import fast as fast_training
from lm.tokenizer.training.counting import count_pre_tokens
from lm.tokenizer.training.merges import learn_merges

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
END = "<|endoftext|>"

# Examples may take any time, so that tests do not fail on a busy machine.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")


def make_text(num_words: int, seed: int) -> str:
    """Return documents of invented words in several scripts, with word frequencies as in a real language."""
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
    """Return a function that returns the tokenizer trained on `text` with a named pattern."""

    @cache
    def train(pattern: str) -> Tokenizer:
        merges = learn_merges(count_pre_tokens([text], PreTokenizer(pattern, [END])), 700)
        return Tokenizer(build_vocab(merges, [END]), merges, [END], pattern)

    return train


@pytest.fixture(scope="session")
def tokenizer(trained: Callable[[str], Tokenizer]) -> Tokenizer:
    return trained("gpt2")


@pytest.fixture(scope="session")
def as_tiktoken() -> Callable[[Tokenizer], tiktoken.Encoding]:
    """Return a function that builds the same tokenizer with tiktoken."""

    def build(tokenizer: Tokenizer) -> tiktoken.Encoding:
        ids = {token: token_id for token_id, token in tokenizer.vocab.items()}
        special_ids = {text: ids.pop(text.encode()) for text in tokenizer.special_tokens}
        pattern = PATTERNS[tokenizer.pattern]
        return tiktoken.Encoding("same", pat_str=pattern, mergeable_ranks=ids, special_tokens=special_ids)

    return build


@pytest.fixture(scope="session")
def kernels() -> SimpleNamespace:
    """Load all libraries, so that no test waits for a compiler, and return the kernels of `text/fast`."""
    fast_training.library.load()
    fast_encoding.library.load()
    return fast_text.library.load()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real texts next to the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip("there is no shared/data folder with real texts next to the project")
    return SHARED_DATA


@pytest.fixture(scope="session")
def gpt2(shared_data: Path) -> Tokenizer:
    """GPT-2's tokenizer."""
    folder = shared_data / "gpt2"
    return Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt", [END])
