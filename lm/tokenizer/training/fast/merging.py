"""Learning merges from distinct pre-tokens with counts, each merge in time proportional to its own occurrences.

All pre-tokens stand in one row of cells, a border between them. A token fills as many cells as it has bytes; its first
and its last cell hold its symbol, so both neighbours of a token are found without links:

    |  t  h  e  |        |  th th e  |        |  the .. the |         (. is GONE)

A table knows the pairs of neighbours: how often each occurs, and the positions where it did when its later token was
made. A position is not removed when its pair is broken up there, but checked when it is used.

Most pairs are too rare ever to be merged. Those that occur less than `floor` times are not kept at all; only when none
is left above the floor, it is lowered and the pairs are indexed anew.

A heap yields the most frequent pair, of equals the lexicographically greater one. The count of a pair only falls once
its later token is made, so an entry is never too low: one that is too high is corrected when it comes up.
"""

import numpy as np

from lm.tokenizer.text.fast.constants import (
    BORDER,
    DONE,
    FLOOR,
    GONE,
    HEAP_SIZE,
    MAX_HEAP,
    MAX_PAIRS,
    MAX_PLACES,
    MAX_TOKENS,
    NEEDED_PAIRS,
    NEEDED_PLACES,
    NEEDS_ROOM,
    NONE_LEFT,
    NUM_PAIRS,
    NUM_PLACES,
    NUM_TOKENS,
)
from lm.tokenizer.text.fast.intrinsics import Bytes, Int, Int64s, Uint32s, Uint64s, compiled, inlined, kernel

_ONE = np.uint64(1)
_FREE = np.uint64(0)
_HALF = np.uint64(32)
_LOWER_HALF = np.uint64(0xFFFFFFFF)
_MIX = np.uint64(0x9E3779B97F4A7C15)


@kernel
def index_pairs(
    cells: Uint32s, at: Int, end: Int, weights: Int64s, lengths: Int64s, pairs: Uint64s, bits: Int, state: Int64s
):
    """Count the pairs of neighbours from cell `at` on; return where it ended, early if the table is full."""
    while at < end:
        left = cells[at]
        if left == BORDER:
            at += 1
            continue
        after = at + lengths[left]
        right = cells[after]
        if right != BORDER:
            slot = _find(pairs, bits, left, right)
            if pairs[slot] == _FREE:
                if state[NUM_PAIRS] == state[MAX_PAIRS]:
                    return at
                pairs[slot] = _pair(left, right)
                state[NUM_PAIRS] += 1
            pairs[slot + 1] += np.uint64(weights[at])
            pairs[slot + 3] += _ONE
        at = after
    return end


@kernel
def move_pairs(source: Uint64s, source_bits: Int, pairs: Uint64s, bits: Int, state: Int64s):
    """Move the pairs that occur `floor` times or more to a table that is empty and has room for them."""
    state[NUM_PAIRS] = 0
    for slot in range(0, 4 << source_bits, 4):
        if source[slot] != _FREE and np.int64(source[slot + 1]) >= state[FLOOR]:
            pair = source[slot] - _ONE
            target = _find(pairs, bits, np.uint32(pair >> _HALF), np.uint32(pair & _LOWER_HALF))
            for field in range(4):
                pairs[target + field] = source[slot + field]
            state[NUM_PAIRS] += 1
    return 0


@kernel
def list_places(
    cells: Uint32s,
    end: Int,
    text: Bytes,
    firsts: Int64s,
    lengths: Int64s,
    prefixes: Uint64s,
    pairs: Uint64s,
    bits: Int,
    places: Uint32s,
    heap: Uint64s,
    state: Int64s,
):
    """Write the positions of all pairs in the table, which `index_pairs` has counted, and put the pairs on the heap."""
    for slot in range(0, 4 << bits, 4):
        if pairs[slot] != _FREE:
            pairs[slot + 2] = np.uint64(state[NUM_PLACES])
            state[NUM_PLACES] += np.int64(pairs[slot + 3])
            pairs[slot + 3] = np.uint64(0)
            _push(heap, state, pairs[slot + 1], pairs[slot] - _ONE, text, firsts, lengths, prefixes)
    at = 0
    while at < end:
        left = cells[at]
        if left == BORDER:
            at += 1
            continue
        after = at + lengths[left]
        if cells[after] != BORDER:
            slot = _find(pairs, bits, left, cells[after])
            if pairs[slot] != _FREE:
                places[np.int64(pairs[slot + 2] + pairs[slot + 3])] = at
                pairs[slot + 3] += _ONE
        at = after
    return 0


@kernel
def learn(
    cells: Uint32s,
    weights: Int64s,
    text: Bytes,
    firsts: Int64s,
    lengths: Int64s,
    prefixes: Uint64s,
    pairs: Uint64s,
    bits: Int,
    places: Uint32s,
    heap: Uint64s,
    neighbours: Int64s,
    merges: Uint32s,
    until: Int,
    state: Int64s,
):
    """Merge until there are `until` tokens, or no pair is left on the heap, or an array needs room; return which.

    Args:
        cells, weights, text: see `lay_out`.
        firsts, lengths, prefixes: of each token a position in `text` where it stands, its length and its first 8 bytes.
        neighbours: 6 numbers for every token that there may be, all 0.
        merges: the left and the right symbol of each token from the 257th on.
    """
    while state[NUM_TOKENS] < until:
        if state[HEAP_SIZE] == 0:
            return NONE_LEFT
        count, pair = heap[0], heap[1]
        slot = _find(pairs, bits, np.uint32(pair >> _HALF), np.uint32(pair & _LOWER_HALF))
        if pairs[slot + 1] != count:
            if np.int64(pairs[slot + 1]) < state[FLOOR]:
                _pop(heap, state, text, firsts, lengths, prefixes)
            else:
                heap[0] = pairs[slot + 1]
                _sift_down(heap, state, text, firsts, lengths, prefixes)
            continue
        # Each position makes two pairs at most, and so does each token.
        state[NEEDED_PLACES] = 2 * np.int64(pairs[slot + 3])
        state[NEEDED_PAIRS] = min(state[NEEDED_PLACES], 2 * state[NUM_TOKENS]) + 1
        if (
            state[NUM_PAIRS] + state[NEEDED_PAIRS] > state[MAX_PAIRS]
            or state[NUM_PLACES] + state[NEEDED_PLACES] > state[MAX_PLACES]
            or state[HEAP_SIZE] + state[NEEDED_PAIRS] > state[MAX_HEAP]
        ):
            return NEEDS_ROOM
        _pop(heap, state, text, firsts, lengths, prefixes)
        _merge(
            slot, cells, weights, text, firsts, lengths, prefixes, pairs, bits, places, heap, neighbours, merges, state
        )
    return DONE


@compiled
def _merge(slot, cells, weights, text, firsts, lengths, prefixes, pairs, bits, places, heap, neighbours, merges, state):
    """Put a new token wherever the pair of `slot` stands, from left to right."""
    pair = pairs[slot] - _ONE
    left, right = np.uint32(pair >> _HALF), np.uint32(pair & _LOWER_HALF)
    begin, end = np.int64(pairs[slot + 2]), np.int64(pairs[slot + 2] + pairs[slot + 3])
    pairs[slot + 1] = np.uint64(0)
    new = np.uint32(state[NUM_TOKENS])
    to_right = lengths[left]
    length = to_right + lengths[right]
    lengths[new] = length

    # Of each neighbour: how often it stands to the left or right, in the text and in the cells; and a list of them.
    stride = state[MAX_TOKENS]
    left_weight, left_count, left_list = 0, stride, 2 * stride
    right_weight, right_count, right_list = 3 * stride, 4 * stride, 5 * stride
    num_left = num_right = 0
    # In `abab`, the neighbour to the right of the first `ab` is a `b` only until the second is merged.
    twin_weight = twin_count = 0
    kept = begin
    for number in range(begin, end):
        at = np.int64(places[number])
        if cells[at] != left or cells[at + to_right] != right:
            continue
        places[kept] = at
        kept += 1
        weight = weights[at]
        cells[at + to_right - 1] = GONE
        cells[at + to_right] = GONE
        cells[at] = new
        cells[at + length - 1] = new
        before = cells[at - 1]
        if before == new:
            twin_weight += weight
            twin_count += 1
        elif before != BORDER:
            if neighbours[left_count + before] == 0:
                neighbours[left_list + num_left] = before
                num_left += 1
            neighbours[left_weight + before] += weight
            neighbours[left_count + before] += 1
        after = cells[at + length]
        if after != BORDER:
            if neighbours[right_count + after] == 0:
                neighbours[right_list + num_right] = after
                num_right += 1
            neighbours[right_weight + after] += weight
            neighbours[right_count + after] += 1

    for number in range(num_left):
        before = np.uint32(neighbours[left_list + number])
        weight, num_places = neighbours[left_weight + before], neighbours[left_count + before]
        _lose(pairs, bits, before, left, weight)
        neighbours[left_count + before] = _gain(pairs, bits, before, new, weight, num_places, state)
    for number in range(num_right):
        after = np.uint32(neighbours[right_list + number])
        weight, num_places = neighbours[right_weight + after], neighbours[right_count + after]
        _lose(pairs, bits, right, after, weight)
        if after == left:
            weight -= twin_weight
            num_places -= twin_count
        neighbours[right_count + after] = _gain(pairs, bits, new, after, weight, num_places, state)
    twin_slot = _gain(pairs, bits, new, new, twin_weight, twin_count, state)

    for number in range(begin, kept):
        at = np.int64(places[number])
        before, after = cells[at - 1], cells[at + length]
        if before != BORDER and before != new:
            _add_place(pairs, places, neighbours[left_count + before], at - lengths[before])
        if after == new:
            _add_place(pairs, places, twin_slot, at)
        elif after != BORDER:
            _add_place(pairs, places, neighbours[right_count + after], at)

    first = np.int64(places[begin])
    firsts[new] = first
    prefix = np.uint64(0)
    for step in range(8):
        prefix = prefix << np.uint64(8) | np.uint64(text[first + step] if step < length else 0)
    prefixes[new] = prefix
    merges[2 * (np.int64(new) - 256)] = left
    merges[2 * (np.int64(new) - 256) + 1] = right
    state[NUM_TOKENS] += 1

    for number in range(num_left):
        before = neighbours[left_list + number]
        _push_slot(heap, state, pairs, neighbours[left_count + before], text, firsts, lengths, prefixes)
        neighbours[left_weight + before] = neighbours[left_count + before] = 0
    for number in range(num_right):
        after = neighbours[right_list + number]
        _push_slot(heap, state, pairs, neighbours[right_count + after], text, firsts, lengths, prefixes)
        neighbours[right_weight + after] = neighbours[right_count + after] = 0
    _push_slot(heap, state, pairs, twin_slot, text, firsts, lengths, prefixes)


@inlined
def _pair(left, right):
    """What stands in the table: never 0, which is a free slot."""
    return (np.uint64(left) << _HALF | np.uint64(right)) + _ONE


@inlined
def _find(pairs, bits, left, right):
    """Where the slot of a pair begins, or the free slot that it would take."""
    pair = _pair(left, right)
    number = pair * _MIX >> np.uint64(64 - bits)
    while True:
        slot = np.int64(number) * 4
        if pairs[slot] == pair or pairs[slot] == _FREE:
            return slot
        number = (number + _ONE) & ((_ONE << np.uint64(bits)) - _ONE)


@inlined
def _lose(pairs, bits, left, right, weight):
    """A pair that stood in the text no longer does, `weight` times."""
    slot = _find(pairs, bits, left, right)
    if pairs[slot] != _FREE:
        pairs[slot + 1] -= np.uint64(weight)


@inlined
def _gain(pairs, bits, left, right, weight, num_places, state):
    """The slot of a new pair, with room for its positions; -1 if it is too rare to be kept."""
    if weight < state[FLOOR]:
        return -1
    slot = _find(pairs, bits, left, right)
    pairs[slot] = _pair(left, right)
    pairs[slot + 1] = np.uint64(weight)
    pairs[slot + 2] = np.uint64(state[NUM_PLACES])
    pairs[slot + 3] = np.uint64(0)
    state[NUM_PLACES] += num_places
    state[NUM_PAIRS] += 1
    return slot


@inlined
def _add_place(pairs, places, slot, at):
    if slot >= 0:
        places[np.int64(pairs[slot + 2] + pairs[slot + 3])] = at
        pairs[slot + 3] += _ONE


@inlined
def _push_slot(heap, state, pairs, slot, text, firsts, lengths, prefixes):
    if slot >= 0:
        _push(heap, state, pairs[slot + 1], pairs[slot] - _ONE, text, firsts, lengths, prefixes)


@compiled
def _push(heap, state, count, pair, text, firsts, lengths, prefixes):
    """Put a pair on the heap; an entry is two numbers, the count and the pair."""
    child = state[HEAP_SIZE]
    state[HEAP_SIZE] += 1
    while child > 0:
        parent = (child - 1) // 2
        if not _before(count, pair, heap[2 * parent], heap[2 * parent + 1], text, firsts, lengths, prefixes):
            break
        heap[2 * child], heap[2 * child + 1] = heap[2 * parent], heap[2 * parent + 1]
        child = parent
    heap[2 * child], heap[2 * child + 1] = count, pair


@inlined
def _pop(heap, state, text, firsts, lengths, prefixes):
    """Remove the first entry."""
    state[HEAP_SIZE] -= 1
    last = 2 * state[HEAP_SIZE]
    heap[0], heap[1] = heap[last], heap[last + 1]
    _sift_down(heap, state, text, firsts, lengths, prefixes)


@compiled
def _sift_down(heap, state, text, firsts, lengths, prefixes):
    """Bring the first entry to its place."""
    size = state[HEAP_SIZE]
    count, pair = heap[0], heap[1]
    parent = 0
    while 2 * parent + 1 < size:
        child = 2 * parent + 1
        if child + 1 < size and _before(
            heap[2 * child + 2], heap[2 * child + 3], heap[2 * child], heap[2 * child + 1],
            text, firsts, lengths, prefixes,
        ):  # fmt: skip
            child += 1
        if not _before(heap[2 * child], heap[2 * child + 1], count, pair, text, firsts, lengths, prefixes):
            break
        heap[2 * parent], heap[2 * parent + 1] = heap[2 * child], heap[2 * child + 1]
        parent = child
    heap[2 * parent], heap[2 * parent + 1] = count, pair


@inlined
def _before(count, pair, other_count, other_pair, text, firsts, lengths, prefixes):
    """Whether a pair is to be merged before another: the greater count, then the lexicographically greater pair."""
    if count != other_count:
        return count > other_count
    left, other_left = np.int64(pair >> _HALF), np.int64(other_pair >> _HALF)
    if left != other_left:
        return _greater(left, other_left, text, firsts, lengths, prefixes)
    right, other_right = np.int64(pair & _LOWER_HALF), np.int64(other_pair & _LOWER_HALF)
    return right != other_right and _greater(right, other_right, text, firsts, lengths, prefixes)


@inlined
def _greater(token, other, text, firsts, lengths, prefixes):
    """Whether the bytes of a token are lexicographically greater than those of another one."""
    if prefixes[token] != prefixes[other]:
        return prefixes[token] > prefixes[other]
    for step in range(8, min(lengths[token], lengths[other])):
        if text[firsts[token] + step] != text[firsts[other] + step]:
            return text[firsts[token] + step] > text[firsts[other] + step]
    return lengths[token] > lengths[other]
