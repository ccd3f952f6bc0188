"""SwiGLU's gate with a hand-written backward pass, which keeps the two inputs instead of four tensors of their size."""

from typing import Any

import torch
from torch import Tensor


def silu_gate(a: Tensor, b: Tensor) -> Tensor:
    """silu(a) · b, elementwise."""
    return _SiLUGate.apply(a, b)


class _SiLUGate(torch.autograd.Function):
    """With s = sigmoid(a) and g = dL/dy: dL/da = g b (s + a s (1 - s)) and dL/db = g a s."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return (a * torch.sigmoid(a)).mul_(b)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        s = torch.sigmoid(a)
        a_s = a * s
        slope = torch.addcmul(s, a_s, 1 - s)
        return slope.mul_(b).mul_(gradient), a_s.mul_(gradient)
