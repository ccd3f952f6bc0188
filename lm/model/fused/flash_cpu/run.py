"""Run the kernels on PyTorch's own threads.

PyTorch computes on the threads of OpenMP, which wait for more work by spinning, so any other threads would compete with
them for the processors. The OpenMP that comes with PyTorch on Linux is GNU's; its `GOMP_parallel` runs a function of
one argument on all these threads.
"""

import ctypes
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm.model.fused.flash_cpu import library, task
from lm.tokenizer.text.fast.build import can_load

_DTYPES = {torch.float32: task.FLOAT32, torch.bfloat16: task.BFLOAT16}


def supports(x: Tensor) -> bool:
    """Whether the kernels can read tensors like `x`."""
    return x.device.type == "cpu" and x.dtype in _DTYPES and can_run()


def can_run() -> bool:
    """Whether the kernels can be compiled and run here."""
    return can_load() and _gomp_parallel() is not None


def forward(Q: Tensor, K: Tensor, V: Tensor, document_starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Q, K, V (B, H, T, d) -> O (B, H, T, d) and L (B, H, T), in float32; document_starts (B, T)."""
    O, L = torch.empty_like(Q), Q.new_empty(Q.shape[:-1], dtype=torch.float32)
    _run("forward", {task.QUERIES: Q, task.KEYS: K, task.VALUES: V, task.OUTPUT: O}, L, document_starts)
    return O, L


def backward(
    dO: Tensor, Q: Tensor, K: Tensor, V: Tensor, O: Tensor, L: Tensor, document_starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of Q, K and V."""
    dQ, dK, dV = (torch.empty_like(x) for x in (Q, K, V))
    tensors = {
        task.QUERIES: Q,
        task.KEYS: K,
        task.VALUES: V,
        task.OUTPUT: O,
        task.OUTPUT_GRADIENT: dO if dO.stride(-1) == 1 else dO.contiguous(),
        task.QUERIES_GRADIENT: dQ,
        task.KEYS_GRADIENT: dK,
        task.VALUES_GRADIENT: dV,
    }
    _run("backward", tensors, L, document_starts)
    return dQ, dK, dV


def _run(kernel: str, tensors: dict[int, Tensor], L: Tensor, document_starts: Tensor | None) -> None:
    """Call a kernel in every thread. The last dimension of each tensor is contiguous; so are L and document_starts."""
    B, H, T, d = tensors[task.QUERIES].shape
    num_threads = max(1, min(torch.get_num_threads(), B * H))
    per_thread = task.scratch_bytes(T, d)[kernel]
    scratch = torch.empty(num_threads, per_thread, dtype=torch.uint8)
    numbers = np.zeros(task.SIZE, np.int64)
    numbers[[task.NUM_HEADS, task.HEADS, task.LENGTH, task.D_HEAD]] = B * H, H, T, d
    numbers[task.DTYPE] = _DTYPES[tensors[task.QUERIES].dtype]
    numbers[[task.SCRATCH, task.SCRATCH_BYTES]] = scratch.data_ptr(), per_thread
    numbers[task.LOG_SUM_EXP] = L.data_ptr()
    numbers[task.STARTS] = 0 if document_starts is None else document_starts.data_ptr()
    for index, tensor in tensors.items():
        strides = (tensor.element_size() * stride for stride in tensor.stride()[:3])
        numbers[index : index + 4] = tensor.data_ptr(), *strides
    function = getattr(library.load(), kernel)
    _gomp_parallel()(ctypes.cast(function, ctypes.c_void_p), numbers.ctypes.data, num_threads, 0)


@cache
def _gomp_parallel() -> Any:
    """GNU OpenMP's function to run a function of one pointer on several threads, or None."""
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # no such symbol; on Windows, no library without a name
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function
