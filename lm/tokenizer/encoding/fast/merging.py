"""Applying the merges to one pre-token."""

import numpy as np

from lm.tokenizer.encoding.fast.constants import NO_MERGE, SYMBOL_BITS
from lm.tokenizer.encoding.fast.pair_table import lookup_merge
from lm.tokenizer.text.fast.hash_table import HALF, LOWER_HALF
from lm.tokenizer.text.fast.intrinsics import compiled, highest_bit, inlined, lowest_bit

_ONE = np.uint64(1)
_ALL_BITS = ~np.uint64(0)
_NO_MERGE = np.uint32(NO_MERGE)
_NO_SYMBOL = np.uint32((1 << SYMBOL_BITS) - 1)


@compiled
def merge_short(data, at, length, byte_pairs, pairs, pair_bits, symbol_ids, work, ids, count):
    """Write the ids of a pre-token of at most 62 bytes to ids[count] and following; return the new count.

    Each symbol is at the position of its first byte, counted from 1, and `remaining` has a bit for each of them. At the
    same position, `merges` holds what the symbol and the next one merge into. The smallest of these is the next merge,
    the leftmost first. A symbol that merges with nothing precedes the first symbol and follows the last.
    """
    symbols = 0
    merges = 64
    for position in range(length):
        work[symbols + position + 1] = data[at + position]
    for position in range(1, length):
        pair = np.int64(data[at + position - 1]) << 8 | np.int64(data[at + position])
        work[merges + position] = byte_pairs[pair]
    work[symbols] = work[symbols + length + 1] = _NO_SYMBOL
    work[merges + length] = _NO_MERGE
    remaining = _ALL_BITS >> np.uint64(62 - length)
    while True:
        merged = work[merges + 1]
        position = 1
        for other in range(2, length):
            if work[merges + other] < merged:
                merged = work[merges + other]
                position = other
        if merged == _NO_MERGE:
            break
        before = highest_bit(remaining & ((_ONE << np.uint64(position)) - _ONE))
        rest = remaining & (_ALL_BITS << np.uint64(position) << _ONE)
        second = lowest_bit(rest)
        remaining &= ~(_ONE << np.uint64(second))
        next_position = lowest_bit(rest & (rest - _ONE))
        work[symbols + position] = merged
        work[merges + second] = _NO_MERGE
        work[merges + position] = lookup_merge(pairs, pair_bits, merged, work[symbols + next_position])
        work[merges + before] = lookup_merge(pairs, pair_bits, work[symbols + before], merged)
    remaining &= ~(_ONE | _ONE << np.uint64(length + 1))
    while remaining:
        ids[count] = symbol_ids[work[symbols + lowest_bit(remaining)]]
        count += 1
        remaining &= remaining - _ONE
    return count


@compiled
def merge_long(data, at, length, pairs, pair_bits, symbol_ids, work, heap, ids, count):
    """Do the same as `merge_short` for n bytes in time O(n log n).

    A heap holds `merged, position` for each pair that can be merged, and for some that are broken up already.
    """
    symbols = 0
    next_position = length
    previous_position = 2 * length
    for position in range(length):
        work[symbols + position] = data[at + position]
        work[next_position + position] = position + 1
        work[previous_position + position] = position - 1
    size = 0
    for position in range(length - 1):
        size = _push(
            heap, size, lookup_merge(pairs, pair_bits, work[symbols + position], work[symbols + position + 1]), position
        )
    while size:
        merged = np.uint32(heap[0] >> HALF)
        position = np.int64(heap[0] & LOWER_HALF)
        size = _pop(heap, size)
        second = np.int64(work[next_position + position])
        if work[symbols + position] == _NO_MERGE or second == length:
            continue
        if lookup_merge(pairs, pair_bits, work[symbols + position], work[symbols + second]) != merged:
            continue
        work[symbols + position] = merged
        work[symbols + second] = _NO_MERGE
        after = np.int64(work[next_position + second])
        work[next_position + position] = after
        if after < length:
            work[previous_position + after] = position
            size = _push(heap, size, lookup_merge(pairs, pair_bits, merged, work[symbols + after]), position)
        if position > 0:
            before = np.int64(work[previous_position + position])
            size = _push(heap, size, lookup_merge(pairs, pair_bits, work[symbols + before], merged), before)
    position = 0
    while position < length:
        ids[count] = symbol_ids[work[symbols + position]]
        count += 1
        position = np.int64(work[next_position + position])
    return count


@inlined
def _push(heap, size, merged, position):
    """Add a pair to the heap unless it cannot be merged; return the new size."""
    if merged == _NO_MERGE:
        return size
    entry = np.uint64(merged) << HALF | np.uint64(position)
    child = size
    while child > 0 and heap[(child - 1) // 2] > entry:
        heap[child] = heap[(child - 1) // 2]
        child = (child - 1) // 2
    heap[child] = entry
    return size + 1


@inlined
def _pop(heap, size):
    """Remove the smallest entry; return the new size."""
    size -= 1
    entry = heap[size]
    parent = 0
    while 2 * parent + 1 < size:
        child = 2 * parent + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= entry:
            break
        heap[parent] = heap[child]
        parent = child
    heap[parent] = entry
    return size
