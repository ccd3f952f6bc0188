"""Applying the merges to pre-tokens: to several short ones at the same time, or to one of any length."""

import numpy as np

from lm.tokenizer.encoding.fast.constants import LANE_SIZE, NO_MERGE, SYMBOL_BITS
from lm.tokenizer.encoding.fast.pair_table import lookup_merge
from lm.tokenizer.text.fast.hash_table import HALF, LOWER_HALF
from lm.tokenizer.text.fast.intrinsics import compiled, highest_bit, inlined, lowest_bit, smallest_of_16

_ONE = np.uint64(1)
_ALL_BITS = ~np.uint64(0)
_NO_MERGE = np.uint32(NO_MERGE)
_NO_SYMBOL = np.uint32((1 << SYMBOL_BITS) - 1)

_MERGES = LANE_SIZE // 2  # a lane has its symbols in the first half and their merges in the second
_POSITION_BITS = np.uint32(6)
_POSITION_MASK = np.uint32(63)
_END_OF_MERGES = np.uint32(1 << SYMBOL_BITS + 6)  # greater than all merges, but less than NO_MERGE and any position


@inlined
def start_lane(data, at, length, byte_pairs, work, remaining, lane):
    """Prepare the merging of a pre-token of at most 62 bytes, data[at : at + length].

    Each symbol is at the position of its first byte, counted from 1, and `remaining[lane]` has a bit for each of them.
    At the same position is the merge of the symbol and the next one, as `merged << 6 | position`, so the smallest of
    these numbers is the next merge, the leftmost first. Before the first symbol and after the last is one that merges
    with nothing.
    """
    symbols = lane * LANE_SIZE
    merges = symbols + _MERGES
    for position in range(length + 15 & ~15):
        work[merges + position] = _NO_MERGE
    work[symbols] = work[symbols + length + 1] = _NO_SYMBOL
    left = np.int64(data[at])
    work[symbols + 1] = left
    for position in range(1, length):
        right = np.int64(data[at + position])
        work[symbols + position + 1] = right
        work[merges + position] = byte_pairs[left << 8 | right] << _POSITION_BITS | np.uint32(position)
        left = right
    remaining[lane] = _ALL_BITS >> np.uint64(62 - length)


@compiled
def merge_lanes(num_lanes, pairs, pair_bits, work, remaining):
    """Apply all merges to the pre-tokens in the lanes, one merge in each of them in turn.

    What is merged next depends on what has been merged before. While the processor waits for that, it works on the
    other lanes.
    """
    active = (_ONE << np.uint64(num_lanes)) - _ONE
    while active:
        lanes = active
        while lanes:
            lane = lowest_bit(lanes)
            lanes &= lanes - _ONE
            if not _merge_next(pairs, pair_bits, work, remaining, lane):
                active ^= _ONE << np.uint64(lane)


@inlined
def _merge_next(pairs, pair_bits, work, remaining, lane):
    """Apply the next merge to the pre-token in a lane; return whether there was one."""
    symbols = lane * LANE_SIZE
    merges = symbols + _MERGES
    bits = remaining[lane]
    smallest = smallest_of_16(work, merges)
    for block in range(16, highest_bit(bits) - 1, 16):
        smallest = min(smallest, smallest_of_16(work, merges + block))
    if smallest >= _END_OF_MERGES:
        return False
    merged = smallest >> _POSITION_BITS
    position = np.int64(smallest & _POSITION_MASK)
    before = highest_bit(bits & ((_ONE << np.uint64(position)) - _ONE))
    rest = bits & (_ALL_BITS << np.uint64(position) << _ONE)
    second = lowest_bit(rest)
    next_position = lowest_bit(rest & (rest - _ONE))
    remaining[lane] = bits & ~(_ONE << np.uint64(second))
    work[symbols + position] = merged
    work[merges + second] = _NO_MERGE
    right = lookup_merge(pairs, pair_bits, merged, work[symbols + next_position])
    left = lookup_merge(pairs, pair_bits, work[symbols + before], merged)
    work[merges + position] = right << _POSITION_BITS | np.uint32(position)
    work[merges + before] = left << _POSITION_BITS | np.uint32(before)
    return True


@inlined
def finish_lane(work, remaining, lane, symbol_ids, ids, count):
    """Write the ids of the pre-token in a lane to ids[count] and following; return the new count."""
    symbols = lane * LANE_SIZE
    bits = remaining[lane]
    bits &= ~(_ONE | _ONE << np.uint64(highest_bit(bits)))
    while bits:
        ids[count] = symbol_ids[work[symbols + lowest_bit(bits)]]
        count += 1
        bits &= bits - _ONE
    return count


@compiled
def merge_long(data, at, length, pairs, pair_bits, symbol_ids, work, heap, ids, count):
    """Write the ids of a pre-token of n bytes to ids[count] and following in time O(n log n); return the new count.

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
