"""RMSNorm with a hand-written backward pass, which keeps one tensor of the size of the input instead of three."""

from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, computed in float32 and returned in `dtype`."""
    return _RMSNorm.apply(x, weight, eps, dtype)


class _RMSNorm(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x²) + eps) and h = w dL/dy: dL/dx = r (h - x r² mean(h x)) and dL/dw = dL/dy x r."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x32 = x.float()  # bfloat16 has 8 bits of mantissa, and a sum of D squares would lose most of them
        r = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, r)
        return (x32 * r * weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, r = ctx.saved_tensors
        x32, gradient = x.float(), gradient.float()
        weight_gradient = (gradient * x32 * r).reshape(-1, len(weight)).sum(0)
        h = gradient * weight
        x_gradient = r * (h - x32 * (r.square() * (h * x32).mean(-1, keepdim=True)))
        return x_gradient.to(x.dtype), weight_gradient, None, None
