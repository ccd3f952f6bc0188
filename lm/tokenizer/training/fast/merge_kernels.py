"""Kernels that learn merges from counted pre-tokens; each merge takes time proportional to its own occurrences.

All pre-tokens are in one row of cells, one cell per byte, with a border between pre-tokens. The first and the last
cell of a token hold its symbol, so both neighbors of a token are found without links between tokens:

    |  t  h  e  |        |  th th e  |        |  the .. the |         (.. is INSIDE)

A hash table has one slot of four numbers for each pair of neighboring tokens:

    pair + 1 (0 if free) | count in the text | where its positions begin in `positions` | number of positions

The positions of a pair are those where it occurred when the later of its tokens was made. When another merge breaks up
a pair, its position is not removed; it is checked before it is used.

Most pairs are too rare ever to be merged, so pairs that occur less than MIN_COUNT times are not stored at all. When
no stored pair is left, MIN_COUNT is lowered and the pairs are indexed again.

A heap (see pair_heap.py) yields the pair to merge next. After the later of its tokens is made, the count of a pair only
falls, so the count in a heap entry is never too low. One that is too high is corrected when the entry reaches the top.
"""

import numpy as np

from lm.tokenizer.text.fast.hash_table import HALF, LOWER_HALF, MULTIPLIER
from lm.tokenizer.text.fast.intrinsics import Bytes, Int, Int64s, Uint32s, Uint64s, compiled, inlined, kernel
from lm.tokenizer.training.fast.constants import (
    BORDER,
    DONE,
    HEAP_SIZE,
    INSIDE,
    MAX_HEAP_SIZE,
    MAX_PAIRS,
    MAX_POSITIONS,
    MAX_TOKENS,
    MIN_COUNT,
    NEEDED_PAIRS,
    NEEDED_POSITIONS,
    NEEDS_SPACE,
    NO_PAIRS_LEFT,
    NUM_PAIRS,
    NUM_POSITIONS,
    NUM_TOKENS,
)
from lm.tokenizer.training.fast.pair_heap import pop, push, sift_down

_ONE = np.uint64(1)
_FREE = np.uint64(0)


@kernel
def index_pairs(
    symbols: Uint32s, at: Int, end: Int, weights: Int64s, lengths: Int64s, pairs: Uint64s, bits: Int, state: Int64s
):
    """Count the pairs of neighbors from cell `at` on; return where it stopped, before `end` if the table is full."""
    while at < end:
        left = symbols[at]
        if left == BORDER:
            at += 1
            continue
        after = at + lengths[left]
        right = symbols[after]
        if right != BORDER:
            slot = _find_slot(pairs, bits, left, right)
            if pairs[slot] == _FREE:
                if state[NUM_PAIRS] == state[MAX_PAIRS]:
                    return at
                pairs[slot] = _pair_key(left, right)
                state[NUM_PAIRS] += 1
            pairs[slot + 1] += np.uint64(weights[at])
            pairs[slot + 3] += _ONE
        at = after
    return end


@kernel
def move_pairs(source: Uint64s, source_bits: Int, pairs: Uint64s, bits: Int, state: Int64s):
    """Copy the pairs that occur at least MIN_COUNT times to an empty table, which must have space for them."""
    state[NUM_PAIRS] = 0
    for slot in range(0, 4 << source_bits, 4):
        if source[slot] != _FREE and np.int64(source[slot + 1]) >= state[MIN_COUNT]:
            pair = source[slot] - _ONE
            target = _find_slot(pairs, bits, np.uint32(pair >> HALF), np.uint32(pair & LOWER_HALF))
            for field in range(4):
                pairs[target + field] = source[slot + field]
            state[NUM_PAIRS] += 1
    return 0


@kernel
def list_positions(
    symbols: Uint32s,
    end: Int,
    text: Bytes,
    starts: Int64s,
    lengths: Int64s,
    prefixes: Uint64s,
    pairs: Uint64s,
    bits: Int,
    positions: Uint32s,
    heap: Uint64s,
    state: Int64s,
):
    """Push all pairs that `index_pairs` counted onto the heap, and write their positions."""
    for slot in range(0, 4 << bits, 4):
        if pairs[slot] != _FREE:
            pairs[slot + 2] = np.uint64(state[NUM_POSITIONS])
            state[NUM_POSITIONS] += np.int64(pairs[slot + 3])
            pairs[slot + 3] = np.uint64(0)
            push(heap, state, pairs[slot + 1], pairs[slot] - _ONE, text, starts, lengths, prefixes)
    at = 0
    while at < end:
        left = symbols[at]
        if left == BORDER:
            at += 1
            continue
        after = at + lengths[left]
        if symbols[after] != BORDER:
            slot = _find_slot(pairs, bits, left, symbols[after])
            if pairs[slot] != _FREE:
                positions[np.int64(pairs[slot + 2] + pairs[slot + 3])] = at
                pairs[slot + 3] += _ONE
        at = after
    return 0


@kernel
def learn_merges(
    symbols: Uint32s,
    weights: Int64s,
    text: Bytes,
    starts: Int64s,
    lengths: Int64s,
    prefixes: Uint64s,
    pairs: Uint64s,
    bits: Int,
    positions: Uint32s,
    heap: Uint64s,
    neighbors: Int64s,
    merges: Uint32s,
    until: Int,
    state: Int64s,
):
    """Merge until there are `until` tokens, no pair is left, or an array needs more space; return which one occurred.

    Args:
        symbols, weights, text: See `write_cells`.
        starts, lengths, prefixes: For each token, a cell where it starts in `text`, its length, and
            its first 8 bytes as a big-endian number.
        neighbors: Scratch space for 6 numbers per token of the final vocabulary, all 0.
        merges: Output, the left and the right symbol of each merge.
    """
    while state[NUM_TOKENS] < until:
        if state[HEAP_SIZE] == 0:
            return NO_PAIRS_LEFT
        count, pair = heap[0], heap[1]
        slot = _find_slot(pairs, bits, np.uint32(pair >> HALF), np.uint32(pair & LOWER_HALF))
        if pairs[slot + 1] != count:
            if np.int64(pairs[slot + 1]) < state[MIN_COUNT]:
                pop(heap, state, text, starts, lengths, prefixes)
            else:
                heap[0] = pairs[slot + 1]
                sift_down(heap, state, text, starts, lengths, prefixes)
            continue
        # Each position makes at most two new pairs, and so does each token.
        state[NEEDED_POSITIONS] = 2 * np.int64(pairs[slot + 3])
        state[NEEDED_PAIRS] = min(state[NEEDED_POSITIONS], 2 * state[NUM_TOKENS]) + 1
        if (
            state[NUM_PAIRS] + state[NEEDED_PAIRS] > state[MAX_PAIRS]
            or state[NUM_POSITIONS] + state[NEEDED_POSITIONS] > state[MAX_POSITIONS]
            or state[HEAP_SIZE] + state[NEEDED_PAIRS] > state[MAX_HEAP_SIZE]
        ):
            return NEEDS_SPACE
        pop(heap, state, text, starts, lengths, prefixes)
        _merge_pair(
            slot, symbols, weights, text, starts, lengths, prefixes, pairs, bits, positions, heap, neighbors, merges,
            state,
        )  # fmt: skip
    return DONE


@compiled
def _merge_pair(
    slot, symbols, weights, text, starts, lengths, prefixes, pairs, bits, positions, heap, neighbors, merges, state
):
    """Replace every occurrence of the pair in `slot` by a new token, from left to right."""
    pair = pairs[slot] - _ONE
    left, right = np.uint32(pair >> HALF), np.uint32(pair & LOWER_HALF)
    begin, end = np.int64(pairs[slot + 2]), np.int64(pairs[slot + 2] + pairs[slot + 3])
    pairs[slot + 1] = np.uint64(0)
    new = np.uint32(state[NUM_TOKENS])
    to_right = lengths[left]
    length = to_right + lengths[right]
    lengths[new] = length

    # For each left and each right neighbor: how often it occurs in the text, and in how many cells. And a list of each.
    stride = state[MAX_TOKENS]
    left_weight, left_count, left_list = 0, stride, 2 * stride
    right_weight, right_count, right_list = 3 * stride, 4 * stride, 5 * stride
    num_left = num_right = 0
    # In `abab`, the right neighbor of the first `ab` is an `a`, but only until the second `ab` is merged: then the two
    # new tokens form a pair.
    self_pair_weight = self_pair_count = 0
    kept = begin
    for number in range(begin, end):
        at = np.int64(positions[number])
        if symbols[at] != left or symbols[at + to_right] != right:
            continue
        positions[kept] = at
        kept += 1
        weight = weights[at]
        symbols[at + to_right - 1] = INSIDE
        symbols[at + to_right] = INSIDE
        symbols[at] = new
        symbols[at + length - 1] = new
        before = symbols[at - 1]
        if before == new:
            self_pair_weight += weight
            self_pair_count += 1
        elif before != BORDER:
            if neighbors[left_count + before] == 0:
                neighbors[left_list + num_left] = before
                num_left += 1
            neighbors[left_weight + before] += weight
            neighbors[left_count + before] += 1
        after = symbols[at + length]
        if after != BORDER:
            if neighbors[right_count + after] == 0:
                neighbors[right_list + num_right] = after
                num_right += 1
            neighbors[right_weight + after] += weight
            neighbors[right_count + after] += 1

    for number in range(num_left):
        before = np.uint32(neighbors[left_list + number])
        weight, num_positions = neighbors[left_weight + before], neighbors[left_count + before]
        _subtract(pairs, bits, before, left, weight)
        neighbors[left_count + before] = _add_pair(pairs, bits, before, new, weight, num_positions, state)
    for number in range(num_right):
        after = np.uint32(neighbors[right_list + number])
        weight, num_positions = neighbors[right_weight + after], neighbors[right_count + after]
        _subtract(pairs, bits, right, after, weight)
        if after == left:
            weight -= self_pair_weight
            num_positions -= self_pair_count
        neighbors[right_count + after] = _add_pair(pairs, bits, new, after, weight, num_positions, state)
    self_pair_slot = _add_pair(pairs, bits, new, new, self_pair_weight, self_pair_count, state)

    for number in range(begin, kept):
        at = np.int64(positions[number])
        before, after = symbols[at - 1], symbols[at + length]
        if before != BORDER and before != new:
            _add_position(pairs, positions, neighbors[left_count + before], at - lengths[before])
        if after == new:
            _add_position(pairs, positions, self_pair_slot, at)
        elif after != BORDER:
            _add_position(pairs, positions, neighbors[right_count + after], at)

    first = np.int64(positions[begin])
    starts[new] = first
    prefix = np.uint64(0)
    for step in range(8):
        prefix = prefix << np.uint64(8) | np.uint64(text[first + step] if step < length else 0)
    prefixes[new] = prefix
    merges[2 * (np.int64(new) - 256)] = left
    merges[2 * (np.int64(new) - 256) + 1] = right
    state[NUM_TOKENS] += 1

    for number in range(num_left):
        before = neighbors[left_list + number]
        _push_slot(heap, state, pairs, neighbors[left_count + before], text, starts, lengths, prefixes)
        neighbors[left_weight + before] = neighbors[left_count + before] = 0
    for number in range(num_right):
        after = neighbors[right_list + number]
        _push_slot(heap, state, pairs, neighbors[right_count + after], text, starts, lengths, prefixes)
        neighbors[right_weight + after] = neighbors[right_count + after] = 0
    _push_slot(heap, state, pairs, self_pair_slot, text, starts, lengths, prefixes)


@inlined
def _pair_key(left, right):
    """Return the first number of a pair's slot; it is never 0, which marks a free slot."""
    return (np.uint64(left) << HALF | np.uint64(right)) + _ONE


@inlined
def _find_slot(pairs, bits, left, right):
    """Return the index of the slot of a pair, or of the free slot where it belongs."""
    pair = _pair_key(left, right)
    number = pair * MULTIPLIER >> np.uint64(64 - bits)
    while True:
        slot = np.int64(number) * 4
        if pairs[slot] == pair or pairs[slot] == _FREE:
            return slot
        number = (number + _ONE) & ((_ONE << np.uint64(bits)) - _ONE)


@inlined
def _subtract(pairs, bits, left, right, weight):
    """Subtract `weight` from the count of a pair, if it is stored."""
    slot = _find_slot(pairs, bits, left, right)
    if pairs[slot] != _FREE:
        pairs[slot + 1] -= np.uint64(weight)


@inlined
def _add_pair(pairs, bits, left, right, weight, num_positions, state):
    """Add a new pair and reserve space for its positions; return its slot, or -1 if it is too rare to be stored."""
    if weight < state[MIN_COUNT]:
        return -1
    slot = _find_slot(pairs, bits, left, right)
    pairs[slot] = _pair_key(left, right)
    pairs[slot + 1] = np.uint64(weight)
    pairs[slot + 2] = np.uint64(state[NUM_POSITIONS])
    pairs[slot + 3] = np.uint64(0)
    state[NUM_POSITIONS] += num_positions
    state[NUM_PAIRS] += 1
    return slot


@inlined
def _add_position(pairs, positions, slot, at):
    if slot >= 0:
        positions[np.int64(pairs[slot + 2] + pairs[slot + 3])] = at
        pairs[slot + 3] += _ONE


@inlined
def _push_slot(heap, state, pairs, slot, text, starts, lengths, prefixes):
    if slot >= 0:
        push(heap, state, pairs[slot + 1], pairs[slot] - _ONE, text, starts, lengths, prefixes)
