"""The tokens that a pre-token with their bytes becomes without any merges, as a hash table (see hash_table.py).

The third number of a slot is the position of the token in the bytes of all tokens, and the fourth is its id.
"""

import numpy as np

from lm.tokenizer.text.fast.hash_table import HALF, find_slot, make_key
from lm.tokenizer.text.fast.intrinsics import Bytes, Int, Int64s, Uint32s, Uint64s, inlined, kernel


@kernel
def fill_whole_tokens(texts: Bytes, bounds: Int64s, ids: Uint32s, num_tokens: Int, table: Uint64s, bits: Int):
    """Write all tokens into the empty table.

    Args:
        texts: The bytes of all tokens, and 16 more.
        bounds: Token k is texts[bounds[k] : bounds[k + 1]], different from all others.
        ids: The id of each token.
    """
    for number in range(num_tokens):
        at = bounds[number]
        length = bounds[number + 1] - at
        if length == 0:  # not a pre-token, and not a key
            continue
        first, second = make_key(texts, at, length)
        slot = ~find_slot(table, bits, first, second, texts, at, length, texts)
        table[slot] = first
        table[slot + 1] = second
        table[slot + 2] = np.uint64(at) << HALF
        table[slot + 3] = ids[number]
    return 0


@inlined
def find_whole_token(table, bits, texts, data, at, length):
    """Return the id of the token data[at : at + length], or -1 if it is not in the table; reads at least 16 bytes."""
    first, second = make_key(data, at, length)
    slot = find_slot(table, bits, first, second, data, at, length, texts)
    return np.int64(table[slot + 3]) if slot >= 0 else -1
