"""Learning merges from a large text: `lm.tokenizer.training.merges` with kernels."""

import numpy as np
from tqdm import tqdm

from lm.errors import UserError
from lm.tokenizer.encoding.vocab import Merges
from lm.tokenizer.training.fast import library
from lm.tokenizer.training.fast.constants import (
    BORDER,
    HEAP_SIZE,
    MAX_HEAP_SIZE,
    MAX_PAIRS,
    MAX_POSITIONS,
    MAX_TOKENS,
    MIN_COUNT,
    NEEDED_PAIRS,
    NEEDED_POSITIONS,
    NEEDS_SPACE,
    NO_PAIRS_LEFT,
    NUM_MERGE_FIELDS,
    NUM_PAIRS,
    NUM_POSITIONS,
    NUM_TOKENS,
)
from lm.tokenizer.training.fast.counting import CountTable

_PAIR_BITS = 14
_SPARE_PAIRS = 1 << 14
_SPARE_POSITIONS = 1 << 20
_MERGES_PER_CALL = 256

# The last of N merges is usually a pair that occurs more often than once per 32 N pre-tokens of the text.
_MIN_COUNT_DIVISOR = 32


def learn_merges(counts: CountTable, num_merges: int) -> Merges:
    """Return the merges for counted pre-tokens; fewer than `num_merges` if the pairs run out.

    Raises:
        UserError: There are more than 4 GB of distinct pre-tokens.
    """
    learner = _MergeLearner(counts, num_merges)
    del counts  # large, and not needed anymore
    return learner.learn()


class _MergeLearner:
    """The arrays that the merge kernels work on; they grow when the kernels need more space."""

    def __init__(self, counts: CountTable, num_merges: int) -> None:
        kernels = library.load()
        num_tokens = 256 + num_merges
        self._state = np.zeros(NUM_MERGE_FIELDS, np.int64)
        self._state[NUM_TOKENS], self._state[MAX_TOKENS] = 256, num_tokens
        self._state[MIN_COUNT] = 1 + int(counts.slots[3::4].sum()) // (_MIN_COUNT_DIVISOR * max(1, num_merges))

        # The first 256 cells hold the 256 bytes, so that every one of them occurs in `text`; they are not pre-tokens.
        self._num_cells = 256 + kernels.count_cells(counts.slots, counts.bits)
        if self._num_cells >= 1 << 32:
            raise UserError("tokenizer: the text has more than 4 GB of distinct pre-tokens; train on a part of it")
        self._text = np.empty(self._num_cells, np.uint8)
        self._symbols = np.empty(self._num_cells, np.uint32)
        self._weights = np.empty(self._num_cells, np.int64)
        self._text[:256] = range(256)
        self._symbols[:256] = BORDER
        kernels.write_cells(counts.slots, counts.bits, counts.key_bytes, 256, self._text, self._symbols, self._weights)

        self._starts = np.zeros(num_tokens, np.int64)
        self._lengths = np.ones(num_tokens, np.int64)
        self._prefixes = np.zeros(num_tokens, np.uint64)
        self._starts[:256] = range(256)
        self._prefixes[:256] = np.arange(256, dtype=np.uint64) << np.uint64(56)
        self._neighbors = np.zeros(6 * num_tokens, np.int64)
        self._merges = np.empty(2 * num_merges, np.uint32)

    def learn(self) -> Merges:
        state = self._state
        self._index_pairs()
        with tqdm(total=int(state[MAX_TOKENS]) - 256, desc="merging", unit="merge", disable=None) as bar:
            while state[NUM_TOKENS] < state[MAX_TOKENS]:
                num_before = int(state[NUM_TOKENS])
                until = min(num_before + _MERGES_PER_CALL, int(state[MAX_TOKENS]))
                reason = library.load().learn_merges(
                    self._symbols, self._weights, self._text, self._starts, self._lengths, self._prefixes,
                    self._pairs, self._bits, self._positions, self._heap, self._neighbors, self._merges, until, state,
                )  # fmt: skip
                bar.update(int(state[NUM_TOKENS]) - num_before)
                if reason == NEEDS_SPACE:
                    self._grow()
                elif reason == NO_PAIRS_LEFT:
                    if state[MIN_COUNT] == 1:
                        break
                    state[MIN_COUNT] = 1 + state[MIN_COUNT] // 8
                    self._index_pairs()
        tokens = [bytes([byte]) for byte in range(256)]
        merges = []
        for left, right in self._merges[: 2 * (state[NUM_TOKENS] - 256)].reshape(-1, 2).tolist():
            merges.append((tokens[left], tokens[right]))
            tokens.append(tokens[left] + tokens[right])
        return merges

    def _index_pairs(self) -> None:
        """Find the pairs that occur at least MIN_COUNT times, and their positions."""
        kernels, state = library.load(), self._state
        min_count, state[MIN_COUNT] = int(state[MIN_COUNT]), 0  # while the table grows, no pair is dropped
        self._bits = _PAIR_BITS
        self._pairs = np.zeros(4 << self._bits, np.uint64)
        state[NUM_PAIRS] = state[NUM_POSITIONS] = state[HEAP_SIZE] = 0
        state[MAX_PAIRS] = 1 << self._bits - 1
        at = 256
        while at < self._num_cells:
            at = kernels.index_pairs(
                self._symbols, at, self._num_cells, self._weights, self._lengths, self._pairs, self._bits, state
            )
            if at < self._num_cells:
                self._move_pairs(self._bits + 2)
        state[MIN_COUNT] = min_count
        self._move_pairs(max(_PAIR_BITS, int(np.count_nonzero(self._pairs[1::4] >= min_count)).bit_length() + 1))
        self._positions = np.empty(int(self._pairs[3::4].sum()) + _SPARE_POSITIONS, np.uint32)
        self._heap = np.empty(2 * (int(state[NUM_PAIRS]) + _SPARE_PAIRS), np.uint64)
        state[MAX_POSITIONS], state[MAX_HEAP_SIZE] = len(self._positions), len(self._heap) // 2
        kernels.list_positions(
            self._symbols, self._num_cells, self._text, self._starts, self._lengths, self._prefixes,
            self._pairs, self._bits, self._positions, self._heap, state,
        )  # fmt: skip

    def _grow(self) -> None:
        """Enlarge the arrays that have too little space for the next merge."""
        state = self._state
        if state[NUM_PAIRS] + state[NEEDED_PAIRS] > state[MAX_PAIRS]:
            self._move_pairs(int(state[NUM_PAIRS] + state[NEEDED_PAIRS]).bit_length() + 1)
        if state[NUM_POSITIONS] + state[NEEDED_POSITIONS] > state[MAX_POSITIONS]:
            self._positions = _enlarged(self._positions, int(state[NEEDED_POSITIONS]))
            state[MAX_POSITIONS] = len(self._positions)
        if state[HEAP_SIZE] + state[NEEDED_PAIRS] > state[MAX_HEAP_SIZE]:
            self._heap = _enlarged(self._heap, 2 * int(state[NEEDED_PAIRS]))
            state[MAX_HEAP_SIZE] = len(self._heap) // 2

    def _move_pairs(self, bits: int) -> None:
        """Move the pairs to a new table of 2^bits slots."""
        pairs = np.zeros(4 << bits, np.uint64)
        library.load().move_pairs(self._pairs, self._bits, pairs, bits, self._state)
        self._pairs, self._bits = pairs, bits
        self._state[MAX_PAIRS] = 1 << bits - 1


def _enlarged(array: np.ndarray, num_more: int) -> np.ndarray:
    """Return a copy of `array` that is longer by half its length or by `num_more` elements, whichever is more."""
    larger = np.empty(len(array) + max(len(array) // 2, num_more), array.dtype)
    larger[: len(array)] = array
    return larger
