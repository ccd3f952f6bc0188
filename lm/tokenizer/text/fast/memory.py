"""Memory for the large tables of the kernels."""

import mmap
from contextlib import suppress

import numpy as np
from numpy.typing import DTypeLike

_LARGE_PAGE = 1 << 21


def zeros(length: int, dtype: DTypeLike) -> np.ndarray:
    """Return an array of zeros, in large pages if the operating system has them.

    The first access to a page is an interrupt, which takes a microsecond for 4 kB: for a table that is filled once, as
    long as the rest of the work. With pages of 2 MB it takes less than half of that, and random accesses are faster.
    """
    size = length * np.dtype(dtype).itemsize
    if size < _LARGE_PAGE // 2 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(length, dtype)
    # Memory that is not used is not provided, so there is no harm in one page more, of which a part is skipped.
    memory = mmap.mmap(
        -1, _LARGE_PAGE + -(-size // _LARGE_PAGE) * _LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )
    with suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    begin = -np.frombuffer(memory, np.uint8).ctypes.data % _LARGE_PAGE
    return np.frombuffer(memory, dtype, length, begin)
