"""The product with a weight matrix, by the library that is fast on this processor.

PyTorch gives float32 products on a CPU to MKL, Intel's library. On an AMD EPYC the other one that PyTorch brings,
oneDNN, takes half the time. Everything else is left to PyTorch, compiled code included.
"""

import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ: (..., d_in), (d_out, d_in) -> (..., d_out)."""
    if x.dtype == torch.float32 == weight.dtype and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        if not torch.compiler.is_compiling() and prefers_onednn():  # the compiler does not know this use of oneDNN
            return _Product.apply(x, weight)
    return x @ weight.T


@cache
def prefers_onednn() -> bool:
    """Whether this is a processor of AMD's, with both libraries at hand."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        names = Path("/proc/cpuinfo").read_text()
    except OSError:
        names = platform.processor()
    return "AuthenticAMD" in names


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        x_gradient = _onednn(gradient, weight.T) if ctx.needs_input_grad[0] else None
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            rows, x_rows = gradient.reshape(-1, len(weight)), x.reshape(-1, x.shape[-1])
            weight_gradient = _onednn(rows.T, x_rows.T)
        return x_gradient, weight_gradient


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    # What torch.compile calls as well; it has no gradient of its own.
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
