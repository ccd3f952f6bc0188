"""Encoding: each distinct pre-token is merged once, and looked up from then on.

The table of known pre-tokens (see `table`) answers most of them by reading one slot:

    up to 15 bytes, up to 3 ids    key | key | id 0, id 1 | id 2, number of ids
    others up to 62 bytes          key | key | places in `known_ids` and in `known_bytes` | -, number of ids

Of two in one number, the second is the upper half. Longer pre-tokens hardly ever come again: they are merged each time.

A merge is a lookup too: the table of pairs holds `left, right, product` in one number. Symbols are the 256 bytes, then
the products in the order of the merges, so the pair with the least product is the next to merge.
"""

import numpy as np

from lm.tokenizer.text.fast.constants import (
    MAX_IDS,
    MAX_KEPT,
    MAX_KNOWN,
    NO_PAIR,
    NUM_IDS,
    NUM_KEPT,
    NUM_KNOWN,
    SYMBOL_BITS,
)
from lm.tokenizer.text.fast.hash_table import (
    HALF,
    LONGEST_KEY,
    LOWER_HALF,
    MIX,
    MIX_AGAIN,
    find,
    key,
    length_of,
    slot_of,
)
from lm.tokenizer.text.fast.intrinsics import (
    Bytes,
    Int,
    Int64s,
    Uint32s,
    Uint64s,
    compiled,
    highest_bit,
    inlined,
    kernel,
    lowest_bit,
    prefetch,
    store_two,
)
from lm.tokenizer.text.fast.scanner import scan
from lm.tokenizer.text.fast.utf8 import find_special

_ONE = np.uint64(1)
_ALL = ~np.uint64(0)
_LONGEST_KNOWN = 62
_MOST_IN_SLOT = 3

_SYMBOL_BITS = np.uint64(SYMBOL_BITS)
_SYMBOL = (_ONE << _SYMBOL_BITS) - _ONE
_NO_PAIR = np.uint32(NO_PAIR)
_NO_SYMBOL = np.uint32((1 << SYMBOL_BITS) - 1)
_MAX_PUSHES = 500
_GROUP = 32


@kernel
def fill_pairs(pair_symbols: Uint32s, num_merges: Int, pairs: Uint64s, pair_bits: Int, byte_pairs: Uint32s):
    """Enter all merges into the two tables of pairs; return whether the larger one had room.

    An entry has two slots to choose from (cuckoo hashing, Pagh and Rodler 2004) and pushes out the one that it finds
    there. So a lookup reads two slots and takes no branch, which could only be guessed.

    Args:
        pair_symbols: the left and the right symbol of each merge.
        pairs: all ones; 2^pair_bits numbers, more than twice as many as there are merges.
        byte_pairs: NO_PAIR; 256 x 256 numbers.
    """
    for merge in range(num_merges):
        left, right, product = pair_symbols[2 * merge], pair_symbols[2 * merge + 1], np.uint64(256 + merge)
        if left < 256 and right < 256:
            byte_pairs[np.int64(left) << 8 | np.int64(right)] = product
        entry = (np.uint64(left) << _SYMBOL_BITS | np.uint64(right)) << _SYMBOL_BITS | product
        slot = _first_slot(entry >> _SYMBOL_BITS, pair_bits)
        for _ in range(_MAX_PUSHES):
            entry, pairs[slot] = pairs[slot], entry
            if entry == _ALL:
                break
            pair = entry >> _SYMBOL_BITS
            slot = _first_slot(pair, pair_bits) ^ _second_slot(pair, pair_bits) ^ slot
        if entry != _ALL:
            return False
    return True


@kernel
def rehash(source: Uint64s, source_bits: Int, known: Uint64s, known_bits: Int, known_bytes: Bytes):
    """Move all known pre-tokens to a larger table, which is empty."""
    for slot in range(0, 4 << source_bits, 4):
        first, second = source[slot], source[slot + 1]
        if second:
            place = np.int64(source[slot + 2] >> HALF)
            target = find(known, known_bits, first, second, known_bytes, place, length_of(second), known_bytes)
            for field in range(4):
                known[target + field] = source[slot + field]
    return 0


@kernel
def encode(
    data: Bytes,
    ends: Int64s,
    num_texts: Int,
    special_texts: Bytes,
    special_bounds: Int64s,
    special_ids: Uint32s,
    num_special: Int,
    classes: Bytes,
    byte_pairs: Uint32s,
    pairs: Uint64s,
    pair_bits: Int,
    symbol_ids: Uint32s,
    known: Uint64s,
    known_bits: Int,
    known_ids: Uint32s,
    known_bytes: Bytes,
    state: Int64s,
    starts: Uint32s,
    keys: Uint64s,
    work: Uint32s,
    heap: Uint64s,
    ids: Uint32s,
    id_ends: Int64s,
):
    """Write the ids of `num_texts` texts, and where those of each end; return how many ids there are.

    Args:
        data: the texts, valid UTF-8, one after the other; up to 128 bytes after them are read.
        ends: where each text ends.
        special_texts, special_bounds, special_ids: see `find_special`.
        byte_pairs, pairs: see `fill_pairs`.
        known, known_ids, known_bytes, state: see above, and `layout`. At a maximum, nothing more is remembered.
        starts, ids: room for a number for every byte of data, and 4 more.
        work, heap: room for 3 numbers for every byte of data, and 128 more.
        keys: room for 2 numbers for each pre-token of a group.
    """
    count = 0
    at = 0
    for text in range(num_texts):
        while True:
            stop, special = find_special(data, at, ends[text], special_texts, special_bounds, num_special)
            count = _encode_part(
                data, at, stop, classes, byte_pairs, pairs, pair_bits, symbol_ids,
                known, known_bits, known_ids, known_bytes, state, starts, keys, work, heap, ids, count,
            )  # fmt: skip
            if stop == ends[text]:
                break
            ids[count] = special_ids[special]
            count += 1
            at = stop + special_bounds[special + 1] - special_bounds[special]
        at = ends[text]
        id_ends[text] = count
    return count


@compiled
def _encode_part(
    data, begin, end, classes, byte_pairs, pairs, pair_bits, symbol_ids,
    known, known_bits, known_ids, known_bytes, state, starts, keys, work, heap, ids, count,
):  # fmt: skip
    """Write the ids of data[begin:end], which holds no special token, from ids[count] on; return the new count."""
    num_pre_tokens = scan(data, begin, end, classes, starts)
    for group in range(0, num_pre_tokens, _GROUP):
        stop = min(group + _GROUP, num_pre_tokens)
        for number in range(group, stop):
            at = np.int64(starts[number])
            length = np.int64(starts[number + 1]) - at
            if length <= _LONGEST_KNOWN:
                first, second = key(data, at, length)
                keys[2 * (number - group)] = first
                keys[2 * (number - group) + 1] = second
                prefetch(known, np.int64(slot_of(known_bits, first, second)) * 4)
        for number in range(group, stop):
            at = np.int64(starts[number])
            length = np.int64(starts[number + 1]) - at
            if length > _LONGEST_KNOWN:
                count = _merge_long(data, at, length, pairs, pair_bits, symbol_ids, work, heap, ids, count)
                continue
            first, second = keys[2 * (number - group)], keys[2 * (number - group) + 1]
            slot = find(known, known_bits, first, second, data, at, length, known_bytes)
            third = known[slot + 2]
            num_ids = np.int64(known[slot + 3] >> HALF)
            if num_ids == 0:
                num_ids = _merge(data, at, length, byte_pairs, pairs, pair_bits, symbol_ids, work, ids, count) - count
                _remember(
                    data, at, length, ids, count, num_ids, slot, first, second, known, known_ids, known_bytes, state
                )
            elif num_ids <= _MOST_IN_SLOT and length <= LONGEST_KEY:
                store_two(ids, count, third)
                ids[count + 2] = np.uint32(known[slot + 3])
            else:
                place = np.int64(third & LOWER_HALF)
                for step in range(num_ids):
                    ids[count + step] = known_ids[place + step]
            count += num_ids
    return count


@compiled
def _remember(data, at, length, ids, begin, num_ids, slot, first, second, known, known_ids, known_bytes, state):
    num_known_ids, num_known_bytes = state[NUM_IDS], state[NUM_KEPT]
    if (
        state[NUM_KNOWN] >= state[MAX_KNOWN]
        or num_known_ids + num_ids > state[MAX_IDS]
        or num_known_bytes + length > state[MAX_KEPT]
    ):
        return
    known[slot] = first
    known[slot + 1] = second
    known[slot + 3] = np.uint64(num_ids) << HALF
    if length <= LONGEST_KEY and num_ids <= _MOST_IN_SLOT:
        known[slot + 2] = np.uint64(ids[begin]) | np.uint64(ids[begin + 1]) << HALF
        known[slot + 3] |= np.uint64(ids[begin + 2])
    else:
        known[slot + 2] = np.uint64(num_known_ids) | np.uint64(num_known_bytes) << HALF
        for step in range(num_ids):
            known_ids[num_known_ids + step] = ids[begin + step]
        state[NUM_IDS] += num_ids
        if length > LONGEST_KEY:
            for step in range(length):
                known_bytes[num_known_bytes + step] = data[at + step]
            state[NUM_KEPT] += length
    state[NUM_KNOWN] += 1


@inlined
def _product(pairs, pair_bits, left, right):
    """The symbol that a pair of symbols makes, or NO_PAIR."""
    pair = np.uint64(left) << _SYMBOL_BITS | np.uint64(right)
    first, second = pairs[_first_slot(pair, pair_bits)], pairs[_second_slot(pair, pair_bits)]
    product = _NO_PAIR
    product = np.uint32(second & _SYMBOL) if second >> _SYMBOL_BITS == pair else product
    return np.uint32(first & _SYMBOL) if first >> _SYMBOL_BITS == pair else product


@inlined
def _first_slot(pair, pair_bits):
    return pair * MIX >> np.uint64(64 - pair_bits)


@inlined
def _second_slot(pair, pair_bits):
    return pair * MIX_AGAIN >> np.uint64(64 - pair_bits)


@compiled
def _merge(data, at, length, byte_pairs, pairs, pair_bits, symbol_ids, work, ids, count):
    """Write the ids of a pre-token of up to 62 bytes from ids[count] on; return the new count.

    A symbol stands at the place of its first byte, from 1 on; `live` has a bit for each. Beside it stands the product
    of its pair with the next: the least is the next merge, the leftmost of its kind first. Before the first and behind
    the last symbol stands one that makes no pair.
    """
    symbols = 0
    products = 64
    for place in range(length):
        work[symbols + place + 1] = data[at + place]
    for place in range(1, length):
        pair = np.int64(data[at + place - 1]) << 8 | np.int64(data[at + place])
        work[products + place] = byte_pairs[pair]
    work[symbols] = work[symbols + length + 1] = _NO_SYMBOL
    work[products + length] = _NO_PAIR
    live = _ALL >> np.uint64(62 - length)
    while True:
        product = work[products + 1]
        place = 1
        for other in range(2, length):
            if work[products + other] < product:
                product = work[products + other]
                place = other
        if product == _NO_PAIR:
            break
        before = highest_bit(live & ((_ONE << np.uint64(place)) - _ONE))
        rest = live & (_ALL << np.uint64(place) << _ONE)
        second = lowest_bit(rest)
        live &= ~(_ONE << np.uint64(second))
        following = lowest_bit(rest & (rest - _ONE))
        work[symbols + place] = product
        work[products + second] = _NO_PAIR
        work[products + place] = _product(pairs, pair_bits, product, work[symbols + following])
        work[products + before] = _product(pairs, pair_bits, work[symbols + before], product)
    live &= ~(_ONE | _ONE << np.uint64(length + 1))
    while live:
        ids[count] = symbol_ids[work[symbols + lowest_bit(live)]]
        count += 1
        live &= live - _ONE
    return count


@compiled
def _merge_long(data, at, length, pairs, pair_bits, symbol_ids, work, heap, ids, count):
    """The same for a pre-token of any length, in time n log n.

    A heap holds `product, place` of the pairs, and of some that are gone.
    """
    symbols = 0
    following = length
    preceding = 2 * length
    for place in range(length):
        work[symbols + place] = data[at + place]
        work[following + place] = place + 1
        work[preceding + place] = place - 1
    size = 0
    for place in range(length - 1):
        size = _push(heap, size, _product(pairs, pair_bits, work[symbols + place], work[symbols + place + 1]), place)
    while size:
        product = np.uint32(heap[0] >> HALF)
        place = np.int64(heap[0] & LOWER_HALF)
        size = _pop(heap, size)
        second = np.int64(work[following + place])
        if work[symbols + place] == _NO_PAIR or second == length:
            continue
        if _product(pairs, pair_bits, work[symbols + place], work[symbols + second]) != product:
            continue
        work[symbols + place] = product
        work[symbols + second] = _NO_PAIR
        after = np.int64(work[following + second])
        work[following + place] = after
        if after < length:
            work[preceding + after] = place
            size = _push(heap, size, _product(pairs, pair_bits, product, work[symbols + after]), place)
        if place > 0:
            before = np.int64(work[preceding + place])
            size = _push(heap, size, _product(pairs, pair_bits, work[symbols + before], product), before)
    place = 0
    while place < length:
        ids[count] = symbol_ids[work[symbols + place]]
        count += 1
        place = np.int64(work[following + place])
    return count


@inlined
def _push(heap, size, product, place):
    """Add a pair to the heap, if it makes something; return the new size."""
    if product == _NO_PAIR:
        return size
    entry = np.uint64(product) << HALF | np.uint64(place)
    child = size
    while child > 0 and heap[(child - 1) // 2] > entry:
        heap[child] = heap[(child - 1) // 2]
        child = (child - 1) // 2
    heap[child] = entry
    return size + 1


@inlined
def _pop(heap, size):
    """Remove the least; return the new size."""
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
