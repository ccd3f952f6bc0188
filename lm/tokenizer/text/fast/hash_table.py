"""A hash table whose keys are pre-tokens, used to count pre-tokens and to cache their ids.

It has 2^bits slots of four 64-bit numbers, searched by linear probing. The first two numbers of a slot are the key:

    pre-token        first number    second number            third number                        fourth number
    up to 15 bytes   bytes 0-7       bytes 8-14, its length   any                                 any
    longer           hash            length << 8              position in `key_bytes` << 32, any  any

A short pre-token is its own key, so comparing two of them means comparing two numbers. The bytes of long ones are
stored in the array `key_bytes`. The second number of a free slot is 0.

Several threads may search a table while another one adds keys to it: the second number of a slot is written last, so
whoever finds it there also finds the rest.
"""

import numpy as np

from lm.tokenizer.text.fast.intrinsics import compiled, inlined, load_8_bytes, load_acquire

MAX_SHORT_KEY = 15

HALF = np.uint64(32)
LOWER_HALF = np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)
_FREE = np.uint64(0)
_LENGTH_SHIFT = np.uint64(56)
_LONG_LENGTH_SHIFT = np.uint64(8)
_FIRST_BYTES = np.array([(1 << 8 * min(length, 8)) - 1 for length in range(16)], dtype=np.uint64)
_OTHER_BYTES = np.array([(1 << 8 * max(length - 8, 0)) - 1 for length in range(16)], dtype=np.uint64)
# Odd numbers with irregular bits: multiplying by them spreads all bits of a key into the upper bits of the product.
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
SECOND_MULTIPLIER = np.uint64(0xC2B2AE3D27D4EB4F)


@inlined
def make_key(data, at, length):
    """Return the two numbers of the key of the pre-token data[at : at + length]; reads at least 16 bytes."""
    if length <= MAX_SHORT_KEY:
        first = load_8_bytes(data, at) & _FIRST_BYTES[length]
        return first, load_8_bytes(data, at + 8) & _OTHER_BYTES[length] | np.uint64(length) << _LENGTH_SHIFT
    value = np.uint64(length)
    for position in range(at, at + length - 7, 8):
        value = (value ^ load_8_bytes(data, position)) * MULTIPLIER
        value ^= value >> HALF
    return value ^ load_8_bytes(data, at + length - 8), np.uint64(length) << _LONG_LENGTH_SHIFT


@inlined
def key_length(second):
    """Return the length of a pre-token, given the second number of its key."""
    if second >> _LENGTH_SHIFT:
        return np.int64(second >> _LENGTH_SHIFT)
    return np.int64(second >> _LONG_LENGTH_SHIFT)


@inlined
def home_slot(bits, first, second):
    """Return the number of the slot where the search for a key begins."""
    return (first ^ second * SECOND_MULTIPLIER) * MULTIPLIER >> np.uint64(64 - bits)


@inlined
def find_slot(table, bits, first, second, data, at, length, key_bytes):
    """Return the index in `table` of the slot of a pre-token; if it has none, ~index of the free slot for it."""
    number = home_slot(bits, first, second)
    if length <= MAX_SHORT_KEY:
        return _probe(table, bits, number, first, second)
    return _find_long(table, bits, number, first, second, data, at, length, key_bytes)


# A separate function, since this is the innermost loop.
@inlined
def _probe(table, bits, number, first, second):
    while True:
        slot = np.int64(number) * 4
        found = load_acquire(table, slot + 1)
        if found == second and table[slot] == first:
            return slot
        if found == _FREE:
            return ~slot
        number = (number + _ONE) & ((_ONE << np.uint64(bits)) - _ONE)


@compiled
def _find_long(table, bits, number, first, second, data, at, length, key_bytes):
    while True:
        slot = _probe(table, bits, number, first, second)
        if slot < 0:
            return slot
        # The hashes are equal; compare the bytes too.
        position = np.int64(table[slot + 2] >> HALF)
        step = 0
        while step < length and key_bytes[position + step] == data[at + step]:
            step += 1
        if step == length:
            return slot
        number = (np.uint64(slot // 4) + _ONE) & ((_ONE << np.uint64(bits)) - _ONE)
