"""Kernels for encoding: each distinct pre-token is merged once, and its ids are looked up from then on.

A hash table (see hash_table.py) caches the ids of pre-tokens. For most pre-tokens, one slot holds all that is needed:

    pre-token                   1st, 2nd number   3rd number                                  4th number
    <= 15 bytes and <= 3 ids    key               id 0, id 1                                  id 2, number of ids
    otherwise, <= 62 bytes      key               positions in `cached_ids` and `key_bytes`   unused, number of ids

Where two values share a number, the second is in the upper half. Longer pre-tokens rarely repeat and are not cached.

All threads share the cache, so each pre-token is merged by the thread that meets it first. Reading takes no lock. A
thread that adds a pre-token takes the lock in `state`; if another thread holds it, the pre-token is not added this
time. A cache that has been replaced by a larger one stays locked.
"""

import numpy as np

from lm.tokenizer.encoding.fast.constants import LOCK, MAX_IDS, NUM_IDS
from lm.tokenizer.encoding.fast.merging import merge_long, merge_short
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
    kernel,
    prefetch,
    store_pair,
    store_release,
    try_lock,
)
from lm.tokenizer.text.fast.scanner import scan
from lm.tokenizer.text.fast.utf8 import find_special

_MAX_CACHED_LENGTH = 62
_MAX_IDS_IN_SLOT = 3
_GROUP_SIZE = 32  # the slots of this many pre-tokens are prefetched before the first of them is read


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
    data: Bytes,
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
    starts: Uint32s,
    keys: Uint64s,
    work: Uint32s,
    heap: Uint64s,
    ids: Uint32s,
    id_ends: Int64s,
):
    """Write the ids of `num_texts` texts, and where the ids of each text end; return the number of ids.

    Args:
        data: The texts one after the other, valid UTF-8; up to 128 bytes past the end are read.
        ends: Where each text ends in `data`.
        special_texts, special_bounds, special_ids: See `find_special`.
        automaton: The tables of the pattern, see `lm.tokenizer.text.fast.tables`.
        byte_pairs, pairs: See pair_table.py.
        symbol_ids: The id of each symbol.
        whole_tokens, whole_texts: The table of whole_tokens.py and the bytes of its tokens.
        cache, cached_ids, key_bytes, state: The cache, see above. When it is full, nothing is added to it.
        starts: Scratch space for one number per byte of data, and 4 more.
        keys: Scratch space for 2 numbers for each pre-token of a group.
        work, heap: Scratch space for 3 numbers per byte of data, and 128 more.
        ids: Output with space for one number per byte of data, and 4 more.
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
                cache, cache_bits, cached_ids, key_bytes, state, starts, keys, work, heap, ids, count,
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
def _encode_ordinary(
    data, begin, end, automaton, byte_pairs, pairs, pair_bits, symbol_ids,
    whole_tokens, whole_bits, whole_texts,
    cache, cache_bits, cached_ids, key_bytes, state, starts, keys, work, heap, ids, count,
):  # fmt: skip
    """Write the ids of data[begin:end], which contains no special token, from ids[count] on; return the new count."""
    num_pre_tokens = scan(data, begin, end, automaton, starts)
    for group in range(0, num_pre_tokens, _GROUP_SIZE):
        stop = min(group + _GROUP_SIZE, num_pre_tokens)
        for number in range(group, stop):
            at = np.int64(starts[number])
            length = np.int64(starts[number + 1]) - at
            if length <= _MAX_CACHED_LENGTH:
                first, second = make_key(data, at, length)
                keys[2 * (number - group)] = first
                keys[2 * (number - group) + 1] = second
                prefetch(cache, np.int64(home_slot(cache_bits, first, second)) * 4)
        for number in range(group, stop):
            at = np.int64(starts[number])
            length = np.int64(starts[number + 1]) - at
            if length > _MAX_CACHED_LENGTH:
                whole_id = find_whole_token(whole_tokens, whole_bits, whole_texts, data, at, length)
                if whole_id >= 0:
                    ids[count] = whole_id
                    count += 1
                else:
                    count = merge_long(data, at, length, pairs, pair_bits, symbol_ids, work, heap, ids, count)
                continue
            first, second = keys[2 * (number - group)], keys[2 * (number - group) + 1]
            slot = find_slot(cache, cache_bits, first, second, data, at, length, key_bytes)
            if slot < 0:
                whole_id = find_whole_token(whole_tokens, whole_bits, whole_texts, data, at, length)
                if whole_id >= 0:
                    ids[count] = whole_id
                    end_of_ids = count + 1
                else:
                    end_of_ids = merge_short(
                        data, at, length, byte_pairs, pairs, pair_bits, symbol_ids, work, ids, count
                    )
                if try_lock(state, LOCK):
                    _add_to_cache(
                        data, at, length, ids, count, end_of_ids - count, first, second,
                        cache, cache_bits, cached_ids, key_bytes, state,
                    )  # fmt: skip
                    store_release(state, LOCK, 0)
                count = end_of_ids
                continue
            third = cache[slot + 2]
            num_ids = np.int64(cache[slot + 3] >> HALF)
            if num_ids <= _MAX_IDS_IN_SLOT and length <= MAX_SHORT_KEY:
                store_pair(ids, count, third)
                ids[count + 2] = np.uint32(cache[slot + 3])
            else:
                position = np.int64(third & LOWER_HALF)
                for step in range(num_ids):
                    ids[count + step] = cached_ids[position + step]
            count += num_ids
    return count


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
        cache[slot + 3] = np.uint64(num_ids) << HALF
        for step in range(num_ids):
            cached_ids[num_cached_ids + step] = ids[begin + step]
        state[NUM_IDS] += num_ids
        if length > MAX_SHORT_KEY:
            for step in range(length):
                key_bytes[num_key_bytes + step] = data[at + step]
            state[NUM_KEY_BYTES] += length
    state[NUM_KEYS] += 1
    store_release(cache, slot + 1, second)
