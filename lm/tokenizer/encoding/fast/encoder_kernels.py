"""Kernels for encoding: each distinct pre-token is merged once, and its ids are looked up from then on.

A hash table (see hash_table.py) caches the ids of pre-tokens. For most pre-tokens, one slot holds all that is needed:

    pre-token                   1st, 2nd number   3rd number                                  4th number
    <= 15 bytes and <= 3 ids    key               id 0, id 1                                  id 2, number of ids
    otherwise, <= 62 bytes      key               positions in `cached_ids` and `key_bytes`   number of ids, _ELSEWHERE

Where two values share a number, the second is in the upper half. Longer pre-tokens rarely repeat and are not cached.

A text is encoded block by block, in several loops over the pre-tokens of a block: where they start, their keys, their
slots, and their ids. In each loop, the processor works on several pre-tokens at once, and what a loop leaves for the
next one is still in the fastest cache. The new pre-tokens of a block are merged together, see merging.py.

All threads share the cache, so each pre-token is merged by the thread that meets it first. Reading takes no lock. A
thread that adds pre-tokens takes the lock in `state`; if another thread holds it, they are not added this time. A cache
that has been replaced by a larger one stays locked.
"""

import numpy as np

from lm.tokenizer.encoding.fast.constants import BLOCK_SIZE, LOCK, MAX_CACHED_LENGTH, MAX_IDS, NUM_IDS, NUM_LANES
from lm.tokenizer.encoding.fast.merging import finish_lane, merge_lanes, merge_long, start_lane
from lm.tokenizer.encoding.fast.whole_tokens import find_whole_token
from lm.tokenizer.text.fast.constants import MAX_KEY_BYTES, MAX_KEYS, NUM_KEY_BYTES, NUM_KEYS
from lm.tokenizer.text.fast.hash_table import (
    HALF,
    LOWER_HALF,
    MAX_SHORT_KEY,
    find_slot,
    home_slot,
    key_length,
    make_key,
)
from lm.tokenizer.text.fast.intrinsics import (
    Bytes,
    Int,
    Int64s,
    Uint32s,
    Uint64s,
    compiled,
    copy_16,
    inlined,
    kernel,
    prefetch,
    store_pair,
    store_release,
    try_lock,
    uint16s_at,
    uint32s_at,
)
from lm.tokenizer.text.fast.scanner import scan_block
from lm.tokenizer.text.fast.utf8 import find_special

_MAX_IDS_IN_SLOT = 3
_ELSEWHERE = np.uint64(1 << 63)  # the highest bit of the fourth number: the slot says where the ids are

# What `places` says of a pre-token that is neither in the cache nor merged together with others.
_LONG = np.iinfo(np.int64).min
_WHOLE = -(1 << 62)  # plus the id of the token that it becomes without merges
_MAX_ID = (1 << 32) - 1
_SCRATCH = BLOCK_SIZE + 64  # an index of `new_ids` behind the ids of a block


@kernel
def close_cache(state: Int64s):
    """Lock a cache for good, so that nothing more is added to it."""
    while not try_lock(state, LOCK):
        pass
    return 0


@kernel
def copy_cache(source: Uint64s, source_bits: Int, cache: Uint64s, cache_bits: Int, key_bytes: Bytes):
    """Copy all pre-tokens of a closed cache to a larger, empty table."""
    for slot in range(0, 4 << source_bits, 4):
        first, second = source[slot], source[slot + 1]
        if second:
            position = np.int64(source[slot + 2] >> HALF)
            target = ~find_slot(cache, cache_bits, first, second, key_bytes, position, key_length(second), key_bytes)
            for field in range(4):
                cache[target + field] = source[slot + field]
    return 0


@kernel
def encode(
    ends: Int64s,
    num_texts: Int,
    special_texts: Bytes,
    special_bounds: Int64s,
    special_ids: Uint32s,
    num_special: Int,
    automaton: Bytes,
    byte_pairs: Uint32s,
    pairs: Uint64s,
    pair_bits: Int,
    symbol_ids: Uint32s,
    whole_tokens: Uint64s,
    whole_bits: Int,
    whole_texts: Bytes,
    cache: Uint64s,
    cache_bits: Int,
    cached_ids: Uint32s,
    key_bytes: Bytes,
    state: Int64s,
    data: Bytes,
    starts: Uint32s,
    keys: Uint64s,
    places: Int64s,
    work: Uint32s,
    heap: Uint64s,
    new_ids: Uint32s,
    new_ends: Int64s,
    block_ids: Uint32s,
    ids: Int,
    id_bytes: Int,
    id_ends: Int64s,
):
    """Write the ids of `num_texts` texts, and where the ids of each text end; return the number of ids.

    Args:
        ends: Where each text ends in `data`.
        special_texts, special_bounds, special_ids: See `find_special`.
        automaton: The tables of the pattern, see `lm.tokenizer.text.fast.tables`.
        byte_pairs, pairs: See pair_table.py.
        symbol_ids: The id of each symbol.
        whole_tokens, whole_texts: The table of whole_tokens.py and the bytes of its tokens.
        cache, cached_ids, key_bytes, state: The cache, see above. When it is full, nothing is added to it.
        data: The texts one after the other, valid UTF-8; up to 128 bytes past the end are read.
        starts, places, new_ids, new_ends: Scratch space for BLOCK_SIZE + 128 numbers.
        keys: Scratch space for twice as many.
        work, heap: Scratch space for 3 numbers per byte of data, and NUM_LANES * LANE_SIZE more.
        block_ids: Scratch space for one number per byte of data, and 2 * BLOCK_SIZE more.
        ids: The address of the output, with space for one number per byte of data, and 16 more.
        id_bytes: The size of an id in the output, 2 or 4 bytes.
        id_ends: Output, where the ids of each text end in `ids`.
    """
    count = 0
    at = 0
    for text in range(num_texts):
        while True:
            stop, special = find_special(data, at, ends[text], special_texts, special_bounds, num_special)
            count = _encode_ordinary(
                data, at, stop, automaton, byte_pairs, pairs, pair_bits, symbol_ids,
                whole_tokens, whole_bits, whole_texts,
                cache, cache_bits, cached_ids, key_bytes, state, starts, keys, places, work, heap,
                new_ids, new_ends, block_ids, ids, id_bytes, count,
            )  # fmt: skip
            if stop == ends[text]:
                break
            block_ids[0] = special_ids[special]
            count = _write_ids(block_ids, 1, ids, id_bytes, count)
            at = stop + special_bounds[special + 1] - special_bounds[special]
        at = ends[text]
        id_ends[text] = count
    return count


@compiled
def _encode_ordinary(
    data, begin, end, automaton, byte_pairs, pairs, pair_bits, symbol_ids, whole_tokens, whole_bits, whole_texts,
    cache, cache_bits, cached_ids, key_bytes, state, starts, keys, places, work, heap,
    new_ids, new_ends, block_ids, ids, id_bytes, count,
):  # fmt: skip
    """Write the ids of data[begin:end], which contains no special token, from ids[count] on; return the new count."""
    at = begin
    while at < end:
        num_pre_tokens = scan_block(data, at, min(at + BLOCK_SIZE, end), end, automaton, starts)
        _find_pre_tokens(
            data, starts, num_pre_tokens, byte_pairs, pairs, pair_bits, symbol_ids,
            whole_tokens, whole_bits, whole_texts,
            cache, cache_bits, cached_ids, key_bytes, state, keys, places, work, heap, new_ids, new_ends,
        )  # fmt: skip
        num_ids = 0
        for number in range(num_pre_tokens):
            place = places[number]
            if place >= 0:
                third, fourth = cache[place + 2], cache[place + 3]
                if fourth & _ELSEWHERE == 0:
                    store_pair(block_ids, num_ids, third)
                    block_ids[num_ids + 2] = np.uint32(fourth)
                    num_ids += np.int64(fourth >> HALF)
                else:
                    position, size = np.int64(third & LOWER_HALF), np.int64(fourth & LOWER_HALF)
                    num_ids = _copy_ids(cached_ids, position, size, block_ids, num_ids)
            elif place > _WHOLE + _MAX_ID:
                position = new_ends[~place]
                num_ids = _copy_ids(new_ids, position, new_ends[~place + 1] - position, block_ids, num_ids)
            elif place != _LONG:
                block_ids[num_ids] = place - _WHOLE
                num_ids += 1
            else:
                at, length = np.int64(starts[number]), np.int64(starts[number + 1]) - np.int64(starts[number])
                num_ids = merge_long(data, at, length, pairs, pair_bits, symbol_ids, work, heap, block_ids, num_ids)
        count = _write_ids(block_ids, num_ids, ids, id_bytes, count)
        at = np.int64(starts[num_pre_tokens])
    return count


@compiled
def _find_pre_tokens(
    data, starts, num_pre_tokens, byte_pairs, pairs, pair_bits, symbol_ids, whole_tokens, whole_bits, whole_texts,
    cache, cache_bits, cached_ids, key_bytes, state, keys, places, work, heap, new_ids, new_ends,
):  # fmt: skip
    """Write to `places` where the ids of each pre-token of a block are; merge those that are not in the cache.

    A place is the index of a slot of the cache; or ~k for the pre-token whose ids are new_ids[new_ends[k] :
    new_ends[k + 1]]; or _WHOLE plus its only id; or _LONG for a pre-token that is not cached.
    """
    for number in range(num_pre_tokens):
        at = np.int64(starts[number])
        length = np.int64(starts[number + 1]) - at
        if length <= MAX_CACHED_LENGTH:
            first, second = make_key(data, at, length)
            keys[2 * number] = first
            keys[2 * number + 1] = second
            prefetch(cache, np.int64(home_slot(cache_bits, first, second)) * 4)
    num_merged = num_lanes = 0
    for number in range(num_pre_tokens):
        at = np.int64(starts[number])
        length = np.int64(starts[number + 1]) - at
        is_long = length > MAX_CACHED_LENGTH
        place = _LONG
        if not is_long:
            place = find_slot(cache, cache_bits, keys[2 * number], keys[2 * number + 1], data, at, length, key_bytes)
        if place >= 0:
            places[number] = place
            continue
        whole_id = find_whole_token(whole_tokens, whole_bits, whole_texts, data, at, length)
        if whole_id >= 0:
            place = _WHOLE + whole_id
            if not is_long and try_lock(state, LOCK):
                new_ids[_SCRATCH] = whole_id
                _add_to_cache(
                    data, at, length, new_ids, _SCRATCH, 1, keys[2 * number], keys[2 * number + 1],
                    cache, cache_bits, cached_ids, key_bytes, state,
                )  # fmt: skip
                store_release(state, LOCK, 0)
        elif not is_long:
            lane = _find_lane(keys, number, length, heap, num_lanes)
            if lane == num_lanes:
                start_lane(data, at, length, byte_pairs, work, heap, lane)
                heap[NUM_LANES + lane] = number
                num_lanes += 1
            place = ~(num_merged + lane)
        places[number] = place
        if num_lanes == NUM_LANES:
            _merge_new(
                data, starts, num_lanes, pairs, pair_bits, symbol_ids,
                cache, cache_bits, cached_ids, key_bytes, state, keys, work, heap, new_ids, new_ends, num_merged,
            )  # fmt: skip
            num_merged += num_lanes
            num_lanes = 0
    if num_lanes:
        _merge_new(
            data, starts, num_lanes, pairs, pair_bits, symbol_ids,
            cache, cache_bits, cached_ids, key_bytes, state, keys, work, heap, new_ids, new_ends, num_merged,
        )  # fmt: skip


@inlined
def _find_lane(keys, number, length, heap, num_lanes):
    """Return the lane of an equal short pre-token, or num_lanes if there is none."""
    lane = 0
    while lane < num_lanes:
        other = np.int64(heap[NUM_LANES + lane])
        is_equal = keys[2 * other] == keys[2 * number] and keys[2 * other + 1] == keys[2 * number + 1]
        if is_equal and length <= MAX_SHORT_KEY:
            break
        lane += 1
    return lane


@compiled
def _merge_new(
    data, starts, num_lanes, pairs, pair_bits, symbol_ids,
    cache, cache_bits, cached_ids, key_bytes, state, keys, work, heap, new_ids, new_ends, num_merged,
):  # fmt: skip
    """Merge the pre-tokens in the lanes, write their ids to `new_ids`, add them to the cache unless it is locked."""
    merge_lanes(num_lanes, pairs, pair_bits, work, heap)
    new_ends[0] = 0
    is_mine = try_lock(state, LOCK)
    for lane in range(num_lanes):
        begin = new_ends[num_merged + lane]
        end = finish_lane(work, heap, lane, symbol_ids, new_ids, begin)
        new_ends[num_merged + lane + 1] = end
        if is_mine:
            number = np.int64(heap[NUM_LANES + lane])
            at = np.int64(starts[number])
            _add_to_cache(
                data, at, np.int64(starts[number + 1]) - at, new_ids, begin, end - begin,
                keys[2 * number], keys[2 * number + 1], cache, cache_bits, cached_ids, key_bytes, state,
            )  # fmt: skip
    if is_mine:
        store_release(state, LOCK, 0)


@inlined
def _copy_ids(source, position, num_ids, ids, count):
    """Copy numbers to ids[count] and following, and up to 15 more than asked for; return the new count."""
    for step in range(0, num_ids, 16):
        copy_16(source, position + step, ids, count + step)
    return count + num_ids


@inlined
def _write_ids(block_ids, num_ids, ids, id_bytes, count):
    """Write numbers to ids[count] and following, as numbers of `id_bytes` bytes; return the new count."""
    for step in range(0, num_ids, 16):
        if id_bytes == 2:
            copy_16(block_ids, step, uint16s_at(ids), count + step)
        else:
            copy_16(block_ids, step, uint32s_at(ids), count + step)
    return count + num_ids


@compiled
def _add_to_cache(
    data, at, length, ids, begin, num_ids, first, second, cache, cache_bits, cached_ids, key_bytes, state
):  # fmt: skip
    """Add a pre-token and its ids; the caller holds the lock."""
    num_cached_ids, num_key_bytes = state[NUM_IDS], state[NUM_KEY_BYTES]
    if (
        state[NUM_KEYS] >= state[MAX_KEYS]
        or num_cached_ids + num_ids > state[MAX_IDS]
        or num_key_bytes + length > state[MAX_KEY_BYTES]
    ):
        return
    # Since this thread found a free slot, another one may have filled it, even with the same pre-token.
    slot = ~find_slot(cache, cache_bits, first, second, data, at, length, key_bytes)
    if slot < 0:
        return
    cache[slot] = first
    if length <= MAX_SHORT_KEY and num_ids <= _MAX_IDS_IN_SLOT:
        cache[slot + 2] = np.uint64(ids[begin]) | np.uint64(ids[begin + 1]) << HALF
        cache[slot + 3] = np.uint64(ids[begin + 2]) | np.uint64(num_ids) << HALF
    else:
        cache[slot + 2] = np.uint64(num_cached_ids) | np.uint64(num_key_bytes) << HALF
        cache[slot + 3] = _ELSEWHERE | np.uint64(num_ids)
        for step in range(num_ids):
            cached_ids[num_cached_ids + step] = ids[begin + step]
        state[NUM_IDS] += num_ids
        if length > MAX_SHORT_KEY:
            for step in range(length):
                key_bytes[num_key_bytes + step] = data[at + step]
            state[NUM_KEY_BYTES] += length
    state[NUM_KEYS] += 1
    store_release(cache, slot + 1, second)
