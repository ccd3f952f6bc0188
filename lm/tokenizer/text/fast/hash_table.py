"""The hash table of pre-tokens that counting and encoding share.

2^bits slots of four 64-bit numbers, found by linear probing, of which the first two are the key:

    up to 15 bytes    bytes 0-7 | bytes 8-14, length | any | any
    more              hash      | length << 8        | place of the bytes in `kept` << 32, any | any

A short pre-token is its own key, and comparing two is comparing two numbers. A free slot has a 0 in its second number.
"""

import numpy as np

from lm.tokenizer.text.fast.intrinsics import compiled, inlined, load_8_bytes

LONGEST_KEY = 15

HALF = np.uint64(32)
LOWER_HALF = np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)
_FREE = np.uint64(0)
_LENGTH_AT = np.uint64(56)
_LONG_LENGTH_AT = np.uint64(8)
_FIRST_BYTES = np.array([(1 << 8 * min(length, 8)) - 1 for length in range(16)], dtype=np.uint64)
_OTHER_BYTES = np.array([(1 << 8 * max(length - 8, 0)) - 1 for length in range(16)], dtype=np.uint64)
# Odd numbers without a pattern in their bits: multiplied by them, all bits of a key reach the upper ones.
MIX = np.uint64(0x9E3779B97F4A7C15)
MIX_AGAIN = np.uint64(0xC2B2AE3D27D4EB4F)


@inlined
def key(data, at, length):
    """The key of the pre-token data[at : at + length]; reads 16 bytes at least."""
    if length <= LONGEST_KEY:
        first = load_8_bytes(data, at) & _FIRST_BYTES[length]
        return first, load_8_bytes(data, at + 8) & _OTHER_BYTES[length] | np.uint64(length) << _LENGTH_AT
    value = np.uint64(length)
    for place in range(at, at + length - 7, 8):
        value = (value ^ load_8_bytes(data, place)) * MIX
        value ^= value >> HALF
    return value ^ load_8_bytes(data, at + length - 8), np.uint64(length) << _LONG_LENGTH_AT


@inlined
def length_of(second):
    """The length of a pre-token, from the second number of its key."""
    return np.int64(second >> _LENGTH_AT) if second >> _LENGTH_AT else np.int64(second >> _LONG_LENGTH_AT)


@inlined
def slot_of(bits, first, second):
    """The number of the slot where the search for a pre-token begins."""
    return (first ^ second * MIX_AGAIN) * MIX >> np.uint64(64 - bits)


@inlined
def find(table, bits, first, second, data, at, length, kept):
    """Where the slot of a pre-token begins, or the free slot that it would take."""
    number = slot_of(bits, first, second)
    if length <= LONGEST_KEY:
        return _probe(table, bits, number, first, second)
    return _find_long(table, bits, number, first, second, data, at, length, kept)


# In a function of its own: this is the innermost loop.
@inlined
def _probe(table, bits, number, first, second):
    while True:
        slot = np.int64(number) * 4
        if table[slot + 1] == second and table[slot] == first or table[slot + 1] == _FREE:
            return slot
        number = (number + _ONE) & ((_ONE << np.uint64(bits)) - _ONE)


@compiled
def _find_long(table, bits, number, first, second, data, at, length, kept):
    while True:
        slot = _probe(table, bits, number, first, second)
        if table[slot + 1] == _FREE:
            return slot
        # The hash says that it is the one, the bytes decide.
        place = np.int64(table[slot + 2] >> HALF)
        step = 0
        while step < length and kept[place + step] == data[at + step]:
            step += 1
        if step == length:
            return slot
        number = (np.uint64(slot // 4) + _ONE) & ((_ONE << np.uint64(bits)) - _ONE)
