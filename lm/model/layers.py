"""The layers, each one equation.

Shapes: ... any leading dimensions, T sequence, D d_model, F feed-forward width, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn

from lm.model.fused.onednn import product


class Linear(nn.Module):
    """y = x Wᵀ, without bias; `weight` is (d_out, d_in).

    Initialised from a normal distribution of variance 2 / (d_in + d_out) (Glorot & Bengio 2010), cut at 3 sigma.
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        std = math.sqrt(2 / (d_in + d_out))
        nn.init.trunc_normal_(self.weight, std=std, a=-3 * std, b=3 * std)

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight)  # (..., d_in) -> (..., d_out)


class Embedding(nn.Module):
    """Rows of `weight` (num_embeddings, d_model), initialised from a normal distribution cut at 3 sigma."""

    def __init__(self, num_embeddings: int, d_model: int, std: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_embeddings, d_model))
        nn.init.trunc_normal_(self.weight, std=std, a=-3 * std, b=3 * std)

    def forward(self, token_ids: Tensor) -> Tensor:
        # Not self.weight[token_ids]: its backward adds up a token's gradients in an order that changes from run to run.
        return nn.functional.embedding(token_ids, self.weight)  # (...) -> (..., D)


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x²) + eps) · weight, in float32 inside (Zhang & Sennrich 2019).

    Under autocast y has its dtype: what reads it is a product, or several, and would convert it each time.
    """

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return _RMSNorm.apply(x, self.weight, self.eps, dtype)


class _RMSNorm(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x²) + eps), y = x r w and h = w dL/dy: dL/dx = r (h - x r² mean(h x)), dL/dw = dL/dy x r.

    PyTorch's own derivative of the forward pass keeps three tensors of the size of x; this one keeps x.
    """

    @staticmethod
    def forward(ctx, x, weight, eps, dtype):
        x32 = x.float()  # bfloat16 has 8 bits of mantissa: a sum of D squares would lose most of them
        r = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, r)
        return (x32 * r * weight).to(dtype)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, r = ctx.saved_tensors
        x32, gradient = x.float(), gradient.float()
        weight_gradient = (gradient * x32 * r).reshape(-1, len(weight)).sum(0)
        h = gradient * weight
        x_gradient = r * (h - x32 * (r.square() * (h * x32).mean(-1, keepdim=True)))
        return x_gradient.to(x.dtype), weight_gradient, None, None


class LayerNorm(nn.Module):
    """y = (x - mean(x)) / sqrt(var(x) + eps) · weight + bias, in float32 inside (Ba et al. 2016)."""

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        x32 = x32 - x32.mean(-1, keepdim=True)
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (x32 * self.weight + self.bias).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x) (Hendrycks & Gimpel 2016), element by element."""
    return x * torch.sigmoid(x)


class SwiGLU(nn.Module):
    """y = W2 (silu(W1 x) · W3 x), of width d_ff (Shazeer 2020)."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.w1 = Linear(d_model, d_ff)
        self.w2 = Linear(d_ff, d_model)
        self.w3 = Linear(d_model, d_ff)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(_Gate.apply(self.w1(x), self.w3(x)))


class _Gate(torch.autograd.Function):
    """y = silu(a) b. With s = sigmoid(a) and g = dL/dy: dL/da = g b (s + a s (1 - s)), dL/db = g a s.

    PyTorch's own derivative keeps four tensors of their size; this one keeps a and b.
    """

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return silu(a).mul_(b)

    @staticmethod
    def backward(ctx, gradient):
        a, b = ctx.saved_tensors
        s = torch.sigmoid(a)
        a_s = a * s
        slope = torch.addcmul(s, a_s, 1 - s)
        return slope.mul_(b).mul_(gradient), a_s.mul_(gradient)


class SiLU(nn.Module):
    """y = W2 silu(W1 x), of width 3/2 d_ff: two matrices with the parameters of SwiGLU's three."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.w1 = Linear(d_model, 3 * d_ff // 2)
        self.w2 = Linear(3 * d_ff // 2, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(silu(self.w1(x)))
