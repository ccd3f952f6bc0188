"""The merges as a hash table from pairs of symbols to merged symbols.

The symbols are the 256 bytes, then the results of the merges in order. An entry of the table is one 64-bit number,
`left, right, merged`; all bits are set in a free slot. Each entry has two possible slots and displaces the entry it
finds there to its other slot (cuckoo hashing, Pagh and Rodler 2004). So a lookup reads exactly two slots, without a
branch that the processor would have to guess.

A second table holds the merges of two bytes: `byte_pairs[left << 8 | right]` is the merged symbol, or NO_MERGE.
"""

import numpy as np

from lm.tokenizer.encoding.fast.constants import NO_MERGE, SYMBOL_BITS
from lm.tokenizer.text.fast.hash_table import MULTIPLIER, SECOND_MULTIPLIER
from lm.tokenizer.text.fast.intrinsics import Int, Uint32s, Uint64s, inlined, kernel

_ONE = np.uint64(1)
_FREE = ~np.uint64(0)
_SYMBOL_BITS = np.uint64(SYMBOL_BITS)
_SYMBOL_MASK = (_ONE << _SYMBOL_BITS) - _ONE
_NO_MERGE = np.uint32(NO_MERGE)
_MAX_DISPLACEMENTS = 500


@kernel
def fill_pairs(pair_symbols: Uint32s, num_pairs: Int, pairs: Uint64s, pair_bits: Int, byte_pairs: Uint32s):
    """Write all pairs into both tables; return whether there was space for them in the hash table.

    Args:
        pair_symbols: The left and the right symbol of each pair, and the symbol that it makes.
        pairs: The hash table, 2^pair_bits numbers, more than twice as many as there are pairs; all bits set.
        byte_pairs: The table of pairs of bytes, 256 x 256 numbers; all NO_MERGE.
    """
    for number in range(0, 3 * num_pairs, 3):
        left, right, merged = pair_symbols[number], pair_symbols[number + 1], np.uint64(pair_symbols[number + 2])
        if left < 256 and right < 256:
            byte_pairs[np.int64(left) << 8 | np.int64(right)] = merged
        entry = (np.uint64(left) << _SYMBOL_BITS | np.uint64(right)) << _SYMBOL_BITS | merged
        slot = _first_slot(entry >> _SYMBOL_BITS, pair_bits)
        for _ in range(_MAX_DISPLACEMENTS):
            entry, pairs[slot] = pairs[slot], entry
            if entry == _FREE:
                break
            pair = entry >> _SYMBOL_BITS
            slot = _first_slot(pair, pair_bits) ^ _second_slot(pair, pair_bits) ^ slot
        if entry != _FREE:
            return False
    return True


@inlined
def lookup_merge(pairs, pair_bits, left, right):
    """Return the symbol that a pair of symbols merges into, or NO_MERGE."""
    pair = np.uint64(left) << _SYMBOL_BITS | np.uint64(right)
    first, second = pairs[_first_slot(pair, pair_bits)], pairs[_second_slot(pair, pair_bits)]
    merged = _NO_MERGE
    merged = np.uint32(second & _SYMBOL_MASK) if second >> _SYMBOL_BITS == pair else merged
    return np.uint32(first & _SYMBOL_MASK) if first >> _SYMBOL_BITS == pair else merged


@inlined
def _first_slot(pair, pair_bits):
    return pair * MULTIPLIER >> np.uint64(64 - pair_bits)


@inlined
def _second_slot(pair, pair_bits):
    return pair * SECOND_MULTIPLIER >> np.uint64(64 - pair_bits)
