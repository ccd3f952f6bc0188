"""Multiplication by a weight matrix on a CPU, with the library and in the precision that are fastest there.

- On a CPU, PyTorch multiplies float32 matrices with MKL, Intel's library. On an AMD EPYC, oneDNN, which PyTorch also
  includes, takes half the time.
- Many processors multiply bfloat16 matrices more slowly than float32 ones: those without instructions for them take
  about ten times as long, and an Intel Xeon in a virtual machine that hides its AMX instructions takes twice as long.
  There, products under autocast are computed in float32, with the weights as they are. Activations are in bfloat16
  nevertheless.
"""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def applies(x: Tensor, weight: Tensor) -> bool:
    """Whether `matmul` may be used for these tensors, and is faster than PyTorch's own multiplication."""
    if x.device.type != "cpu":
        return False
    dtypes = {_autocast_dtype(x), _autocast_dtype(weight)}
    if dtypes == {torch.bfloat16}:  # weights in bfloat16 would have to be converted for each product
        return weight.dtype == torch.float32 and prefers_float32()
    return dtypes == {torch.float32} and prefers_onednn()


def matmul(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ: (..., d_in), (d_out, d_in) -> (..., d_out), on the CPU; under autocast, in its dtype."""
    if _autocast_dtype(x) == torch.bfloat16:
        return _Float32Product.apply(x, weight)
    return _OneDNNProduct.apply(x, weight)


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which products with `x` are computed under the present autocast."""
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    return torch.float32 if dtype == torch.bfloat16 and x.device.type == "cpu" and prefers_float32() else dtype


def _autocast_dtype(x: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled("cpu") and x.dtype in (torch.float32, torch.bfloat16):
        return torch.get_autocast_dtype("cpu")
    return x.dtype


# torch.compile does not look into functions that are marked like this, but calls them.
@torch.compiler.assume_constant_result
def prefers_onednn() -> bool:
    """Whether this is an AMD processor and PyTorch has both libraries."""
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return has_both and "AuthenticAMD" in _processor()


@torch.compiler.assume_constant_result
def prefers_float32() -> bool:
    """Whether float32 products are faster than bfloat16 ones: on x86, unless there is AMX, or AMD's AVX-512.

    Other processors are left to PyTorch.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    features = _processor()
    return not ("amx_bf16" in features or ("avx512_bf16" in features and "AuthenticAMD" in features))


@cache
def _processor() -> str:
    """The vendor of the processor and, on Linux, its features."""
    try:
        return Path("/proc/cpuinfo").read_text().partition("\n\n")[0]  # of the first core; all are alike
    except OSError:
        return platform.processor()


class _OneDNNProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        x_gradient = _onednn(gradient, weight.T) if ctx.needs_input_grad[0] else None
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            rows, x_rows = gradient.reshape(-1, len(weight)), x.reshape(-1, x.shape[-1])
            weight_gradient = _onednn(rows.T, x_rows.T)
        return x_gradient, weight_gradient


class _Float32Product(torch.autograd.Function):
    """The product of bfloat16 activations, as bfloat16, computed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.dtype, x = x.dtype, x.bfloat16()
        ctx.save_for_backward(x, weight)
        with torch.autocast("cpu", enabled=False):
            return _float32(x, weight).bfloat16()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        x_gradient = weight_gradient = None
        with torch.autocast("cpu", enabled=False):
            gradient = gradient.float()
            if ctx.needs_input_grad[0]:
                x_gradient = _float32(gradient, weight.T).to(ctx.dtype)
            if ctx.needs_input_grad[1]:
                rows, x_rows = gradient.reshape(-1, len(weight)), x.reshape(-1, x.shape[-1])
                weight_gradient = _float32(rows.T, x_rows.T).to(weight.dtype)
        return x_gradient, weight_gradient


def _float32(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ in float32, whatever the dtypes."""
    x, weight = x.float(), weight.float()
    return _onednn(x, weight) if prefers_onednn() else x @ weight.T


# A custom operator, because the compiler of torch.compile does not know the one that it wraps in graphs like ours.
@torch.library.custom_op("lm::onednn_product", mutates_args=())
def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ with oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


@_onednn.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))
