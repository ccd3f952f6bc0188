"""Counting the pre-tokens of a large text: `lm.tokenizer.training.counting` with kernels and threads."""

import threading
from collections.abc import Mapping, Sequence
from copy import copy

import numpy as np

from lm.tokenizer.text.fast.chunks import PADDING, Source, SpecialTokens, piece_length, split_source
from lm.tokenizer.text.fast.constants import MAX_KEY_BYTES, MAX_KEYS, NUM_KEY_BYTES, NUM_KEYS, NUM_TABLE_FIELDS
from lm.tokenizer.text.fast.memory import zeros
from lm.tokenizer.text.fast.parallel import parallel_map
from lm.tokenizer.training.fast import library

_THREAD_TABLE_BITS = 16  # 2 MB, of which a thread mostly uses a small part, so that it stays in the core's cache
_TEXT_TABLE_BITS = 17
_KEY_BYTES = 1 << 21  # so that even one pre-token as long as a piece fits in


class CountTable:
    """A hash table from distinct pre-tokens to their counts; counting_kernels.py describes the arrays."""

    def __init__(self, bits: int) -> None:
        self._allocate(bits, _KEY_BYTES)

    def _allocate(self, bits: int, num_key_bytes: int) -> None:
        self.bits = bits
        self.slots = zeros(4 << bits, np.uint64)
        self.key_bytes = np.empty(num_key_bytes + len(PADDING), np.uint8)
        self.state = np.zeros(NUM_TABLE_FIELDS, np.int64)
        # At most half full, so that probing stays short.
        self.state[MAX_KEYS], self.state[MAX_KEY_BYTES] = 1 << bits - 1, num_key_bytes

    def grow(self, bits: int, num_key_bytes: int) -> None:
        """Move to other arrays, with 2^bits slots and space for this many bytes of long keys."""
        smaller = copy(self)
        self._allocate(bits, num_key_bytes)
        self.add_counts(smaller)

    def add_counts(self, other: "CountTable") -> None:
        """Add the counts of another table to this one, which grows only when it is full: most keys may be in both."""
        at = 0
        while at < len(other.slots):
            at = library.load().add_counts(
                other.slots, other.bits, other.key_bytes, at, self.slots, self.bits, self.key_bytes, self.state
            )
            if at < len(other.slots):
                state = self.state
                if state[NUM_KEYS] == state[MAX_KEYS]:
                    self.grow(self.bits + 1, int(state[MAX_KEY_BYTES]))
                else:
                    self.grow(self.bits, 2 * int(state[NUM_KEY_BYTES] + other.state[NUM_KEY_BYTES]))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the contents as arrays, for a file."""
        return {"slots": self.slots, "key_bytes": self.key_bytes, "state": self.state}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "CountTable":
        """Return the table that `to_arrays` has described."""
        table = cls.__new__(cls)
        table.slots, table.key_bytes, table.state = arrays["slots"], arrays["key_bytes"], arrays["state"]
        table.bits = (len(table.slots) // 4).bit_length() - 1
        return table

    def clear(self) -> None:
        self.slots.fill(0)
        self.state[[NUM_KEYS, NUM_KEY_BYTES]] = 0


def count_pre_tokens(
    source: Source, automaton: np.ndarray, special_tokens: Sequence[str], num_threads: int
) -> CountTable:
    """Count how often each distinct pre-token occurs.

    Args:
        source: The text.
        automaton: The tables of the pattern, from `automaton_tables`.
        special_tokens: Texts that separate documents and are not counted.
        num_threads: How many threads count.
    """
    special = SpecialTokens.from_ids(dict.fromkeys(special_tokens, 0))
    total = CountTable(_TEXT_TABLE_BITS)
    total_lock = threading.Lock()
    thread_tables: list[CountTable] = []
    local = threading.local()

    def count(piece: tuple[int, int]) -> None:
        max_bytes = source.max_bytes(*piece)
        if not hasattr(local, "table"):
            local.table, local.data = CountTable(_THREAD_TABLE_BITS), np.empty(0, np.uint8)
            thread_tables.append(local.table)
        if len(local.data) < max_bytes + len(PADDING):
            local.data = np.empty(max_bytes + len(PADDING), np.uint8)
            local.starts = np.empty(max_bytes + 4, np.uint32)
        table = local.table
        size = source.read(*piece, local.data)
        if table.state[MAX_KEY_BYTES] < size:  # the whole piece may be one pre-token
            table.grow(table.bits, 2 * size)  # the next piece may be a little longer
        at = 0
        while at < size:
            at = library.load().count_pre_tokens(
                local.data, at, size, special.texts, special.bounds, special.num_tokens, automaton,
                local.starts, table.slots, table.bits, table.key_bytes, table.state,
            )  # fmt: skip
            if at < size:
                with total_lock:
                    total.add_counts(table)
                table.clear()

    pieces = split_source(source, piece_length(source.length, num_threads), automaton, special)
    for _ in parallel_map(count, pieces, num_threads):
        pass
    # In a text with few distinct pre-tokens, no table has been full, so the total is still empty.
    largest, *others = sorted([total, *thread_tables], key=lambda table: -table.state[NUM_KEYS])
    for table in others:
        if table.state[NUM_KEYS]:
            largest.add_counts(table)
    return largest
