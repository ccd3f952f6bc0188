"""Kernels for decoding: copy the bytes of each token, one token after the other."""

import numpy as np

from lm.tokenizer.text.fast.intrinsics import Bytes, Int, Int64s, Uint32s, kernel, load_8_bytes, store_8_bytes


@kernel
def count_bytes(ids: Uint32s, num_ids: Int, bounds: Int64s, num_tokens: Int):
    """Return the number of bytes that the ids decode to, or -1 if one of the ids is not in the vocabulary.

    Args:
        bounds: The bytes of token k are texts[bounds[k] : bounds[k + 1]], see `decode`.
    """
    size = 0
    for index in range(num_ids):
        token = np.int64(ids[index])
        if token >= num_tokens:
            return -1
        size += bounds[token + 1] - bounds[token]
    return size


@kernel
def decode(ids: Uint32s, num_ids: Int, texts: Bytes, bounds: Int64s, data: Bytes):
    """Write the bytes of the ids to `data`; return the number of bytes.

    Args:
        texts: The bytes of all tokens, and 8 more.
        data: Output with space for the number of bytes that `count_bytes` returns, and 8 more.
    """
    at = 0
    for index in range(num_ids):
        token = np.int64(ids[index])
        begin, length = bounds[token], bounds[token + 1] - bounds[token]
        for step in range(0, length, 8):
            store_8_bytes(data, at + step, load_8_bytes(texts, begin + step))
        at += length
    return at
