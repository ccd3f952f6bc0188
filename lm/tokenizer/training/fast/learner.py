"""Training on large texts: the merges of `lm.tokenizer.training.bpe`, by kernels and threads."""

import threading
from collections.abc import Iterable, Sequence
from copy import copy

import numpy as np
from tqdm import tqdm

from lm.errors import UserError
from lm.tokenizer.text.fast.build import load
from lm.tokenizer.text.fast.chunks import PADDING, SpecialTokens, code_point_classes, cut, in_order
from lm.tokenizer.text.fast.constants import (
    BORDER,
    FLOOR,
    HEAP_SIZE,
    MAX_HEAP,
    MAX_KEPT,
    MAX_KNOWN,
    MAX_PAIRS,
    MAX_PLACES,
    MAX_TOKENS,
    NEEDED_PAIRS,
    NEEDED_PLACES,
    NEEDS_ROOM,
    NONE_LEFT,
    NUM_COUNT_FIELDS,
    NUM_KEPT,
    NUM_KNOWN,
    NUM_MERGE_FIELDS,
    NUM_PAIRS,
    NUM_PLACES,
    NUM_TOKENS,
)

Merges = list[tuple[bytes, bytes]]

_THREAD_TABLE_BITS = 16  # 2 MB, most of it cold: it stays near its core
_TEXT_TABLE_BITS = 17
_PAIR_BITS = 14
_KEPT_BYTES = 1 << 20
_SPARE_PAIRS = 1 << 14
_SPARE_PLACES = 1 << 20
_MERGES_AT_A_TIME = 256

# The last of N merges is a pair that makes up more than 1 / (32 N) of all pre-tokens, as a rule.
_PART_OF_LAST_PAIR = 32


def learn_merges(blocks: Iterable[bytes], num_merges: int, special_tokens: Sequence[str], num_threads: int) -> Merges:
    """The merges, at most `num_merges`, of a UTF-8 text with GPT-2's pattern."""
    return _Learner(_count(blocks, special_tokens, num_threads), num_merges).learn()


class _Table:
    """Distinct pre-tokens with their counts; see kernels/counting.py."""

    def __init__(self, bits: int) -> None:
        self._allocate(bits, _KEPT_BYTES)

    def _allocate(self, bits: int, kept_bytes: int) -> None:
        self.bits = bits
        self.slots = np.zeros(4 << bits, np.uint64)
        self.kept = np.empty(kept_bytes + len(PADDING), np.uint8)
        self.state = np.zeros(NUM_COUNT_FIELDS, np.int64)
        # Half full: probing stays short.
        self.state[MAX_KNOWN], self.state[MAX_KEPT] = 1 << bits - 1, kept_bytes

    def make_room(self, num_known: int, num_kept: int) -> None:
        """For so many pre-tokens more, and for the bytes of long ones."""
        num_known += int(self.state[NUM_KNOWN])
        num_kept += int(self.state[NUM_KEPT])
        if num_known > self.state[MAX_KNOWN] or num_kept > self.state[MAX_KEPT]:
            smaller = copy(self)
            self._allocate(max(self.bits, num_known.bit_length() + 1), max(len(self.kept), 2 * num_kept))
            self._add(smaller)

    def pour(self, other: "_Table") -> None:
        """Take the counts of another table, which is empty then."""
        self.make_room(int(other.state[NUM_KNOWN]), int(other.state[NUM_KEPT]))
        self._add(other)
        other.slots.fill(0)
        other.state[[NUM_KNOWN, NUM_KEPT]] = 0

    def _add(self, other: "_Table") -> None:
        load().pour(other.slots, other.bits, other.kept, self.slots, self.bits, self.kept, self.state)


def _count(blocks: Iterable[bytes], special_tokens: Sequence[str], num_threads: int) -> _Table:
    """How often each distinct pre-token occurs."""
    special = SpecialTokens.of(dict.fromkeys(special_tokens, 0))
    classes = code_point_classes()
    total = _Table(_TEXT_TABLE_BITS)
    lock = threading.Lock()  # of `total`
    tables: list[_Table] = []
    own = threading.local()

    def count(chunk: bytes) -> None:
        if not hasattr(own, "table"):
            own.table, own.starts = _Table(_THREAD_TABLE_BITS), np.empty(0, np.uint32)
            tables.append(own.table)
        table, size = own.table, len(chunk)
        if len(own.starts) <= size:
            own.starts = np.empty(2 * size + 1, np.uint32)
        if table.state[MAX_KEPT] < size:  # one pre-token may be the whole chunk
            table.make_room(0, size)
        data = np.frombuffer(chunk + PADDING, np.uint8)
        at = 0
        while at < size:
            at = load().count_pre_tokens(
                data, at, size, special.texts, special.bounds, special.num_tokens, classes,
                own.starts, table.slots, table.bits, table.kept, table.state,
            )  # fmt: skip
            if at < size:
                with lock:
                    total.pour(table)

    for _ in in_order(count, cut(blocks, special_tokens), num_threads):
        pass
    for table in tables:
        total.pour(table)
    return total


class _Learner:
    """The arrays of kernels/merging.py, with room to grow."""

    def __init__(self, counts: _Table, num_merges: int) -> None:
        kernels = load()
        num_tokens = 256 + num_merges
        self._state = np.zeros(NUM_MERGE_FIELDS, np.int64)
        self._state[NUM_TOKENS], self._state[MAX_TOKENS] = 256, num_tokens
        self._state[FLOOR] = 1 + int(counts.slots[3::4].sum()) // (_PART_OF_LAST_PAIR * max(1, num_merges))

        # The 256 bytes come first, so that each stands somewhere in the text; they are no pre-token.
        self._num_cells = 256 + kernels.measure(counts.slots, counts.bits)
        if self._num_cells >= 1 << 32:
            raise UserError("tokenizer: the text has more than 4 GB of distinct pre-tokens; train on a part of it")
        self._text = np.empty(self._num_cells, np.uint8)
        self._cells = np.empty(self._num_cells, np.uint32)
        self._weights = np.empty(self._num_cells, np.int64)
        self._text[:256] = range(256)
        self._cells[:256] = BORDER
        kernels.lay_out(counts.slots, counts.bits, counts.kept, 256, self._text, self._cells, self._weights)

        self._firsts = np.zeros(num_tokens, np.int64)
        self._lengths = np.ones(num_tokens, np.int64)
        self._prefixes = np.zeros(num_tokens, np.uint64)
        self._firsts[:256] = range(256)
        self._prefixes[:256] = np.arange(256, dtype=np.uint64) << np.uint64(56)
        self._neighbours = np.zeros(6 * num_tokens, np.int64)
        self._merges = np.empty(2 * num_merges, np.uint32)

    def learn(self) -> Merges:
        state = self._state
        self._index()
        with tqdm(total=int(state[MAX_TOKENS]) - 256, desc="merging", unit="merge") as bar:
            while state[NUM_TOKENS] < state[MAX_TOKENS]:
                until = min(int(state[NUM_TOKENS]) + _MERGES_AT_A_TIME, int(state[MAX_TOKENS]))
                why = load().learn(
                    self._cells, self._weights, self._text, self._firsts, self._lengths, self._prefixes,
                    self._pairs, self._bits, self._places, self._heap, self._neighbours, self._merges, until, state,
                )  # fmt: skip
                bar.update(int(state[NUM_TOKENS]) - 256 - bar.n)
                if why == NEEDS_ROOM:
                    self._make_room()
                elif why == NONE_LEFT:
                    if state[FLOOR] == 1:
                        break
                    state[FLOOR] = 1 + state[FLOOR] // 8
                    self._index()
        tokens = [bytes([byte]) for byte in range(256)]
        merges = []
        for left, right in self._merges[: 2 * (state[NUM_TOKENS] - 256)].reshape(-1, 2).tolist():
            merges.append((tokens[left], tokens[right]))
            tokens.append(tokens[left] + tokens[right])
        return merges

    def _index(self) -> None:
        """Find the pairs that occur often enough, and where they do."""
        kernels, state = load(), self._state
        floor, state[FLOOR] = int(state[FLOOR]), 0
        self._bits = _PAIR_BITS
        self._pairs = np.zeros(4 << self._bits, np.uint64)
        state[NUM_PAIRS] = state[NUM_PLACES] = state[HEAP_SIZE] = 0
        state[MAX_PAIRS] = 1 << self._bits - 1
        at = 256
        while at < self._num_cells:
            at = kernels.index_pairs(
                self._cells, at, self._num_cells, self._weights, self._lengths, self._pairs, self._bits, state
            )
            if at < self._num_cells:
                self._move_pairs(self._bits + 2)
        state[FLOOR] = floor
        self._move_pairs(max(_PAIR_BITS, int(np.count_nonzero(self._pairs[1::4] >= floor)).bit_length() + 1))
        self._places = np.empty(int(self._pairs[3::4].sum()) + _SPARE_PLACES, np.uint32)
        self._heap = np.empty(2 * (int(state[NUM_PAIRS]) + _SPARE_PAIRS), np.uint64)
        state[MAX_PLACES], state[MAX_HEAP] = len(self._places), len(self._heap) // 2
        kernels.list_places(
            self._cells, self._num_cells, self._text, self._firsts, self._lengths, self._prefixes,
            self._pairs, self._bits, self._places, self._heap, state,
        )  # fmt: skip

    def _make_room(self) -> None:
        state = self._state
        if state[NUM_PAIRS] + state[NEEDED_PAIRS] > state[MAX_PAIRS]:
            self._move_pairs(int(state[NUM_PAIRS] + state[NEEDED_PAIRS]).bit_length() + 1)
        if state[NUM_PLACES] + state[NEEDED_PLACES] > state[MAX_PLACES]:
            self._places = _enlarged(self._places, int(state[NEEDED_PLACES]))
            state[MAX_PLACES] = len(self._places)
        if state[HEAP_SIZE] + state[NEEDED_PAIRS] > state[MAX_HEAP]:
            self._heap = _enlarged(self._heap, 2 * int(state[NEEDED_PAIRS]))
            state[MAX_HEAP] = len(self._heap) // 2

    def _move_pairs(self, bits: int) -> None:
        pairs = np.zeros(4 << bits, np.uint64)
        load().move_pairs(self._pairs, self._bits, pairs, bits, self._state)
        self._pairs, self._bits = pairs, bits
        self._state[MAX_PAIRS] = 1 << bits - 1


def _enlarged(array: np.ndarray, room: int) -> np.ndarray:
    larger = np.empty(len(array) + max(len(array) // 2, room), array.dtype)
    larger[: len(array)] = array
    return larger
