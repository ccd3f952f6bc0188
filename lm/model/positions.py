"""Rotary position embeddings. Learned positions are an `Embedding` that `TransformerLM` adds to the tokens'.

Shapes: ... any leading dimensions, T sequence, K d_head.
"""

import torch
from torch import Tensor, nn


class RotaryEmbedding(nn.Module):
    """Rotates each pair (x[2i], x[2i+1]) by the angle position · theta^(-2i/K) (Su et al. 2021).

    The dot product of two rotated vectors then depends on their positions only through the difference. The rotation is
    computed as in equation 34 of the paper: y = x cos + x' sin, where x' is x with the two elements of each pair
    swapped and the first of them negated.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, theta: float, d_head: int, context_length: int) -> None:
        super().__init__()
        # Other implementations compute in this order, and so round to the same values.
        frequencies = 1 / theta ** (torch.arange(0, d_head, 2, dtype=torch.float32) / d_head)  # (K/2,)
        angles = torch.outer(torch.arange(context_length, dtype=torch.float32), frequencies)  # (T, K/2)
        # Not persistent: the tables follow from the configuration, and a checkpoint holds only what was learned.
        self.register_buffer("cos", angles.cos().repeat_interleave(2, dim=-1), persistent=False)  # (T, K)
        self.register_buffer("sin", torch.stack((-angles.sin(), angles.sin()), -1).flatten(-2), persistent=False)

    def forward(self, x: Tensor, token_positions: Tensor | None = None) -> Tensor:
        """Rotate `x` (..., T, K); `token_positions` (..., T) defaults to 0, 1, ..., T - 1."""
        if token_positions is None:
            cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]  # (T, K)
        else:
            cos, sin = self.cos[token_positions], self.sin[token_positions]  # (..., T, K)
        swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        return torch.addcmul(x * cos.to(x.dtype), swapped, sin.to(x.dtype))
