"""Counting: how often each distinct pre-token of a text occurs.

A slot of the table (see `table`) holds the count in its last number. Each thread counts into a table that fits the
cache. When it is half full, it is poured into the one large table of the text, which grows: pouring is also how a table
moves to a larger one.
"""

import numpy as np

from lm.tokenizer.text.fast.constants import BORDER, MAX_KEPT, MAX_KNOWN, NUM_KEPT, NUM_KNOWN
from lm.tokenizer.text.fast.hash_table import HALF, LONGEST_KEY, find, key, length_of
from lm.tokenizer.text.fast.intrinsics import Bytes, Int, Int64s, Uint32s, Uint64s, inlined, kernel
from lm.tokenizer.text.fast.scanner import scan
from lm.tokenizer.text.fast.utf8 import find_special


@kernel
def count_pre_tokens(
    data: Bytes,
    begin: Int,
    end: Int,
    special_texts: Bytes,
    special_bounds: Int64s,
    num_special: Int,
    classes: Bytes,
    starts: Uint32s,
    table: Uint64s,
    bits: Int,
    kept: Bytes,
    state: Int64s,
):
    """Count the pre-tokens of data[begin:end] into the table; return where it ended, early if the table is full.

    Args:
        data: valid UTF-8; up to 128 bytes after it are read.
        special_texts, special_bounds: see `find_special`.
        starts: room for a number for every byte of data, and 1 more.
    """
    at = begin
    while True:
        stop, special = find_special(data, at, end, special_texts, special_bounds, num_special)
        num_pre_tokens = scan(data, at, stop, classes, starts)
        for number in range(num_pre_tokens):
            place = np.int64(starts[number])
            length = np.int64(starts[number + 1]) - place
            first, second = key(data, place, length)
            slot = find(table, bits, first, second, data, place, length, kept)
            if table[slot + 1] == np.uint64(0):
                if state[NUM_KNOWN] == state[MAX_KNOWN] or state[NUM_KEPT] + length > state[MAX_KEPT]:
                    return place
                _add(table, slot, first, second, data, place, length, kept, state)
            table[slot + 3] += np.uint64(1)
        if stop == end:
            return end
        at = stop + special_bounds[special + 1] - special_bounds[special]


@kernel
def pour(source: Uint64s, source_bits: Int, source_kept: Bytes, table: Uint64s, bits: Int, kept: Bytes, state: Int64s):
    """Add the counts of `source` to those of `table`, which has room for all of them."""
    for slot in range(0, 4 << source_bits, 4):
        first, second, count = source[slot], source[slot + 1], source[slot + 3]
        if second:
            length = length_of(second)
            place = np.int64(source[slot + 2] >> HALF)
            target = find(table, bits, first, second, source_kept, place, length, kept)
            if table[target + 1] == np.uint64(0):
                _add(table, target, first, second, source_kept, place, length, kept, state)
            table[target + 3] += count
    return 0


@kernel
def measure(table: Uint64s, bits: Int):
    """The number of positions that `lay_out` fills."""
    size = 0
    for slot in range(0, 4 << bits, 4):
        length = length_of(table[slot + 1])
        if length >= 2:
            size += length + 1
    return size


@kernel
def lay_out(table: Uint64s, bits: Int, kept: Bytes, at: Int, text: Bytes, cells: Uint32s, weights: Int64s):
    """Write all pre-tokens of two bytes or more one after the other, a border behind each, from position `at` on.

    Args:
        text, cells, weights: of each position the byte, the symbol (the byte, or BORDER) and the count of its
            pre-token. Their length is known from `measure`.
    """
    for slot in range(0, 4 << bits, 4):
        first, second, count = table[slot], table[slot + 1], np.int64(table[slot + 3])
        length = length_of(second)
        if length < 2:
            continue
        place = np.int64(table[slot + 2] >> HALF)
        for step in range(length):
            if length > LONGEST_KEY:
                byte = kept[place + step]
            else:
                word = first if step < 8 else second
                byte = np.uint8(word >> np.uint64(8 * (step % 8)) & np.uint64(0xFF))
            text[at] = byte
            cells[at] = byte
            weights[at] = count
            at += 1
        cells[at] = BORDER
        at += 1
    return at


@inlined
def _add(table, slot, first, second, data, at, length, kept, state):
    """Take a free slot for a pre-token."""
    table[slot] = first
    table[slot + 1] = second
    state[NUM_KNOWN] += 1
    if length > LONGEST_KEY:
        place = state[NUM_KEPT]
        table[slot + 2] = np.uint64(place) << HALF
        for step in range(length):
            kept[place + step] = data[at + step]
        state[NUM_KEPT] += length
