"""Decoding many ids: the bytes of `lm.tokenizer.tokenizer`, by a kernel."""

from collections.abc import Sequence

import numpy as np

from lm.tokenizer.text.fast.build import load
from lm.tokenizer.text.fast.chunks import PADDING


class BulkDecoder:
    """The bytes of the tokens, in the order of their ids."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._texts = np.frombuffer(b"".join([*tokens, PADDING]), np.uint8)
        self._bounds = np.cumsum([0, *map(len, tokens)], dtype=np.int64)

    def decode(self, ids: np.ndarray) -> memoryview | None:
        """The bytes of uint32 ids; None if one of them is not in the vocabulary."""
        kernels = load()
        size = kernels.measure_ids(ids, len(ids), self._bounds, len(self._bounds) - 1)
        if size < 0:
            return None
        data = np.empty(size + len(PADDING), np.uint8)
        kernels.decode(ids, len(ids), self._texts, self._bounds, data)
        return data[:size].data
