"""Decoding: the bytes of the tokens, one after the other."""

import numpy as np

from lm.tokenizer.text.fast.intrinsics import Bytes, Int, Int64s, Uint32s, kernel, load_8_bytes, store_8_bytes


@kernel
def measure_ids(ids: Uint32s, num_ids: Int, bounds: Int64s, num_tokens: Int):
    """The number of bytes of the ids; -1 if one of them is not in the vocabulary.

    Args:
        bounds: the bytes of token k are texts[bounds[k] : bounds[k + 1]], see `decode`.
    """
    size = 0
    for place in range(num_ids):
        token = np.int64(ids[place])
        if token >= num_tokens:
            return -1
        size += bounds[token + 1] - bounds[token]
    return size


@kernel
def decode(ids: Uint32s, num_ids: Int, texts: Bytes, bounds: Int64s, data: Bytes):
    """Write the bytes of the ids to `data`; return their number.

    Args:
        texts: the bytes of all tokens, and 8 more.
        data: room for as many bytes as `measure_ids` says, and 8 more.
    """
    at = 0
    for place in range(num_ids):
        token = np.int64(ids[place])
        begin, length = bounds[token], bounds[token + 1] - bounds[token]
        for step in range(0, length, 8):
            store_8_bytes(data, at + step, load_8_bytes(texts, begin + step))
        at += length
    return at
