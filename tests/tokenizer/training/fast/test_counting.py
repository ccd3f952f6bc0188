import random
from collections import Counter

import numpy as np
import pytest

from lm.tokenizer import reference
from lm.tokenizer.text.fast import chunks
from lm.tokenizer.text.fast.strings import StringSource
from lm.tokenizer.text.fast.tables import automaton_tables
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.training.fast import library
from lm.tokenizer.training.fast.constants import BORDER
from lm.tokenizer.training.fast.counting import CountTable, count_pre_tokens

pytestmark = pytest.mark.usefixtures("kernels")

END = "<|endoftext|>"


def counts_of(table: CountTable) -> Counter[bytes]:
    """Return the counts of all pre-tokens that have at least two bytes."""
    kernels = library.load()
    size = kernels.count_cells(table.slots, table.bits)
    text, symbols, weights = np.empty(size, np.uint8), np.empty(size, np.uint32), np.empty(size, np.int64)
    kernels.write_cells(table.slots, table.bits, table.key_bytes, 0, text, symbols, weights)
    counts: Counter[bytes] = Counter()
    begin = 0
    for end in np.flatnonzero(symbols == BORDER).tolist():
        counts[text[begin:end].tobytes()] += int(weights[begin])
        begin = end + 1
    return counts


@pytest.mark.parametrize("pattern", PATTERNS)
def test_counts_are_those_of_the_reference(monkeypatch: pytest.MonkeyPatch, text: str, pattern: str) -> None:
    expected = Counter(token.encode() for token in reference.pre_tokenize(text, [END], PATTERNS[pattern]))
    del expected[END.encode()]
    expected = Counter({token: count for token, count in expected.items() if len(token) >= 2})
    for length, num_threads in ((1 << 20, 1), (30_000, 1), (30_000, 3)):
        monkeypatch.setattr(chunks, "_MIN_PIECE_LENGTH", length)
        monkeypatch.setattr(chunks, "_MAX_PIECE_LENGTH", length)
        counts = count_pre_tokens(StringSource(text), automaton_tables(pattern), [END], num_threads)
        assert counts_of(counts) == expected


@pytest.mark.parametrize("num_threads", [1, 3])
def test_tables_grow_with_the_number_and_the_length_of_pre_tokens(
    monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    rng = random.Random(1)
    letters = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
    words = [f" {number:x}".translate(letters) for number in range(150_000)]
    words = [word + "é" * (number % 40 if number % 5 == 0 else 0) for number, word in enumerate(words)]
    words += words[::2] + words[::7]
    rng.shuffle(words)
    text = "".join(words)
    expected = Counter(token.encode() for token in reference.pre_tokenize(text) if len(token.encode()) > 1)
    length = len(text) // 9 if num_threads > 1 else len(text)
    monkeypatch.setattr(chunks, "_MIN_PIECE_LENGTH", length)
    monkeypatch.setattr(chunks, "_MAX_PIECE_LENGTH", length)
    counts = count_pre_tokens(StringSource(text), automaton_tables("gpt2"), [], num_threads)
    assert counts_of(counts) == expected and len(expected) == 150_000
    loaded = CountTable.from_arrays(counts.to_arrays())
    loaded.add_counts(counts)
    assert counts_of(loaded) == expected + expected
