"""Memory for the large tables of the kernels."""

import mmap

import numpy as np
from numpy.typing import DTypeLike

_LARGE_PAGE = 1 << 21


def zeros(length: int, dtype: DTypeLike) -> np.ndarray:
    """Return an array of zeros, in large pages if the operating system has them.

    The first access to a page is an interrupt, which takes a microsecond for 4 kB: for a table that is filled once, as
    long as the rest of the work. With pages of 2 MB it takes less than half of that, and random accesses are faster.
    """
    size = length * np.dtype(dtype).itemsize
    if size < _LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(length, dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype)
