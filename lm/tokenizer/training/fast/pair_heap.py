"""A binary heap of pairs of tokens for the merge kernels, with the pair to merge next on top.

That is the most frequent pair, and of equally frequent pairs the lexicographically greater one. An entry is two
numbers: the count, and the symbols of both tokens as `left << 32 | right`. The arrays `text`, `starts`, `lengths` and
`prefixes`, which compare the bytes of tokens, are described in `learn_merges`.
"""

import numpy as np

from lm.tokenizer.text.fast.hash_table import HALF, LOWER_HALF
from lm.tokenizer.text.fast.intrinsics import compiled, inlined
from lm.tokenizer.training.fast.constants import HEAP_SIZE


@compiled
def push(heap, state, count, pair, text, starts, lengths, prefixes):
    """Add an entry."""
    child = state[HEAP_SIZE]
    state[HEAP_SIZE] += 1
    while child > 0:
        parent = (child - 1) // 2
        if not _comes_first(count, pair, heap[2 * parent], heap[2 * parent + 1], text, starts, lengths, prefixes):
            break
        heap[2 * child], heap[2 * child + 1] = heap[2 * parent], heap[2 * parent + 1]
        child = parent
    heap[2 * child], heap[2 * child + 1] = count, pair


@inlined
def pop(heap, state, text, starts, lengths, prefixes):
    """Remove the top entry."""
    state[HEAP_SIZE] -= 1
    last = 2 * state[HEAP_SIZE]
    heap[0], heap[1] = heap[last], heap[last + 1]
    sift_down(heap, state, text, starts, lengths, prefixes)


@compiled
def sift_down(heap, state, text, starts, lengths, prefixes):
    """Move the top entry down to where it belongs."""
    size = state[HEAP_SIZE]
    count, pair = heap[0], heap[1]
    parent = 0
    while 2 * parent + 1 < size:
        child = 2 * parent + 1
        if child + 1 < size and _comes_first(
            heap[2 * child + 2], heap[2 * child + 3], heap[2 * child], heap[2 * child + 1],
            text, starts, lengths, prefixes,
        ):  # fmt: skip
            child += 1
        if not _comes_first(heap[2 * child], heap[2 * child + 1], count, pair, text, starts, lengths, prefixes):
            break
        heap[2 * parent], heap[2 * parent + 1] = heap[2 * child], heap[2 * child + 1]
        parent = child
    heap[2 * parent], heap[2 * parent + 1] = count, pair


@inlined
def _comes_first(count, pair, other_count, other_pair, text, starts, lengths, prefixes):
    """Return whether a pair is merged before another: it has the greater count, or is lexicographically greater."""
    if count != other_count:
        return count > other_count
    left, other_left = np.int64(pair >> HALF), np.int64(other_pair >> HALF)
    if left != other_left:
        return _greater(left, other_left, text, starts, lengths, prefixes)
    right, other_right = np.int64(pair & LOWER_HALF), np.int64(other_pair & LOWER_HALF)
    return right != other_right and _greater(right, other_right, text, starts, lengths, prefixes)


@inlined
def _greater(token, other, text, starts, lengths, prefixes):
    """Return whether the bytes of a token are lexicographically greater than those of another."""
    if prefixes[token] != prefixes[other]:
        return prefixes[token] > prefixes[other]
    for step in range(8, min(lengths[token], lengths[other])):
        if text[starts[token] + step] != text[starts[other] + step]:
            return text[starts[token] + step] > text[starts[other] + step]
    return lengths[token] > lengths[other]
