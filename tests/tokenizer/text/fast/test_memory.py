import mmap

import numpy as np
import pytest

from lm.tokenizer.text.fast.memory import zeros


@pytest.mark.parametrize("length", [0, 1, 1000, 1 << 19, (1 << 20) + 1, 3_000_001])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint64])
def test_zeros(length: int, dtype: type[np.generic]) -> None:
    array = zeros(length, dtype)
    assert (array.shape, array.dtype) == ((length,), dtype) and not array.any()
    array[:] = 1
    assert array.sum() == length
    if array.nbytes >= 1 << 20 and hasattr(mmap, "MADV_HUGEPAGE"):
        assert array.ctypes.data % (1 << 21) == 0, "an array in large pages should begin with one"
