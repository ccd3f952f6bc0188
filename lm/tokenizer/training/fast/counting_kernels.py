"""Kernels that count how often each distinct pre-token of a text occurs.

The counts are in a hash table (see hash_table.py), in the fourth number of each slot. Each thread counts into its own
table, which fits into the processor's cache. When that table is half full, its counts are added to the one large table
of the text. The large table grows by adding its counts to a larger one.
"""

import numpy as np

from lm.tokenizer.text.fast.constants import MAX_KEY_BYTES, MAX_KEYS, NUM_KEY_BYTES, NUM_KEYS
from lm.tokenizer.text.fast.hash_table import HALF, MAX_SHORT_KEY, find_slot, home_slot, key_length, make_key
from lm.tokenizer.text.fast.intrinsics import Bytes, Int, Int64s, Uint32s, Uint64s, inlined, kernel, prefetch
from lm.tokenizer.text.fast.scanner import scan
from lm.tokenizer.text.fast.utf8 import find_special
from lm.tokenizer.training.fast.constants import BORDER

# The table of a text is larger than the processor's cache, so its slots are prefetched this many numbers ahead.
_PREFETCH_DISTANCE = 4 * 32


@kernel
def count_pre_tokens(
    data: Bytes,
    begin: Int,
    end: Int,
    special_texts: Bytes,
    special_bounds: Int64s,
    num_special: Int,
    automaton: Bytes,
    starts: Uint32s,
    table: Uint64s,
    bits: Int,
    key_bytes: Bytes,
    state: Int64s,
):
    """Count the pre-tokens of data[begin:end] in the table; return where it stopped, before `end` if the table is full.

    Args:
        data: Valid UTF-8; up to 128 bytes past the end are read.
        special_texts, special_bounds: See `find_special`.
        automaton: The tables of the pattern, see `lm.tokenizer.text.fast.tables`.
        starts: Scratch space for one number per byte of data, and 4 more.
    """
    at = begin
    while True:
        stop, special = find_special(data, at, end, special_texts, special_bounds, num_special)
        num_pre_tokens = scan(data, at, stop, automaton, starts)
        for number in range(num_pre_tokens):
            position = np.int64(starts[number])
            length = np.int64(starts[number + 1]) - position
            first, second = make_key(data, position, length)
            slot = find_slot(table, bits, first, second, data, position, length, key_bytes)
            if slot < 0:
                slot = ~slot
                if state[NUM_KEYS] == state[MAX_KEYS] or state[NUM_KEY_BYTES] + length > state[MAX_KEY_BYTES]:
                    return position
                _insert(table, slot, first, second, data, position, length, key_bytes, state)
            table[slot + 3] += np.uint64(1)
        if stop == end:
            return end
        at = stop + special_bounds[special + 1] - special_bounds[special]


@kernel
def add_counts(
    source: Uint64s,
    source_bits: Int,
    source_key_bytes: Bytes,
    begin: Int,
    table: Uint64s,
    bits: Int,
    key_bytes: Bytes,
    state: Int64s,
):
    """Add the counts in `source`, from the number source[begin] on, to those in `table`.

    Returns:
        Where it stopped, which is before the end of `source` if `table` is full.
    """
    end = 4 << source_bits
    for slot in range(begin, end, 4):
        ahead = min(slot + _PREFETCH_DISTANCE, end - 4)
        if source[ahead + 1]:
            prefetch(table, np.int64(home_slot(bits, source[ahead], source[ahead + 1])) * 4)
        first, second, count = source[slot], source[slot + 1], source[slot + 3]
        if second:
            length = key_length(second)
            position = np.int64(source[slot + 2] >> HALF)
            target = find_slot(table, bits, first, second, source_key_bytes, position, length, key_bytes)
            if target < 0:
                target = ~target
                if state[NUM_KEYS] == state[MAX_KEYS] or state[NUM_KEY_BYTES] + length > state[MAX_KEY_BYTES]:
                    return slot
                _insert(table, target, first, second, source_key_bytes, position, length, key_bytes, state)
            table[target + 3] += count
    return end


@kernel
def count_cells(table: Uint64s, bits: Int):
    """Return the number of cells that `write_cells` fills."""
    size = 0
    for slot in range(0, 4 << bits, 4):
        length = key_length(table[slot + 1])
        if length >= 2:
            size += length + 1
    return size


@kernel
def write_cells(table: Uint64s, bits: Int, key_bytes: Bytes, at: Int, text: Bytes, symbols: Uint32s, weights: Int64s):
    """Write all pre-tokens of at least two bytes one after the other, starting at cell `at`, each followed by a border.

    Args:
        text, symbols, weights: Outputs with one element per cell: the byte, the symbol (the byte or BORDER) and the
            count of the pre-token. `count_cells` says how many cells are written.
    """
    for slot in range(0, 4 << bits, 4):
        first, second, count = table[slot], table[slot + 1], np.int64(table[slot + 3])
        length = key_length(second)
        if length < 2:
            continue
        position = np.int64(table[slot + 2] >> HALF)
        for step in range(length):
            if length > MAX_SHORT_KEY:
                byte = key_bytes[position + step]
            else:
                word = first if step < 8 else second
                byte = np.uint8(word >> np.uint64(8 * (step % 8)) & np.uint64(0xFF))
            text[at] = byte
            symbols[at] = byte
            weights[at] = count
            at += 1
        symbols[at] = BORDER
        at += 1
    return at


@inlined
def _insert(table, slot, first, second, data, at, length, key_bytes, state):
    """Write a new key into a free slot."""
    table[slot] = first
    table[slot + 1] = second
    state[NUM_KEYS] += 1
    if length > MAX_SHORT_KEY:
        position = state[NUM_KEY_BYTES]
        table[slot + 2] = np.uint64(position) << HALF
        for step in range(length):
            key_bytes[position + step] = data[at + step]
        state[NUM_KEY_BYTES] += length
