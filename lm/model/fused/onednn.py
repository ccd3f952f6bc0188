"""Float32 multiplication by a weight matrix with oneDNN.

On a CPU, PyTorch multiplies float32 matrices with MKL, Intel's library. On an AMD EPYC, oneDNN, which PyTorch also
includes, takes half the time. All other multiplications, and compiled code, are left to PyTorch.
"""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether `matmul` may be used for these tensors, and is faster than PyTorch's own multiplication."""
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or x.device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():  # the compiler does not know this operator
        return False
    return prefers_onednn()


def matmul(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ: (..., d_in), (d_out, d_in) -> (..., d_out), float32 on the CPU."""
    return _Matmul.apply(x, weight)


@cache
def prefers_onednn() -> bool:
    """Whether this is an AMD processor and PyTorch has both libraries."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        names = Path("/proc/cpuinfo").read_text()
    except OSError:
        names = platform.processor()
    return "AuthenticAMD" in names


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _linear(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        x_gradient = _linear(gradient, weight.T) if ctx.needs_input_grad[0] else None
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            rows, x_rows = gradient.reshape(-1, len(weight)), x.reshape(-1, x.shape[-1])
            weight_gradient = _linear(rows.T, x_rows.T)
        return x_gradient, weight_gradient


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    # The operator that torch.compile calls as well; PyTorch defines no gradient for it.
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
