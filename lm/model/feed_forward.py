"""The position-wise feed-forward layer.

Beside its equation, each variant reports what it costs: its number of parameters, its FLOPs, and what a training step
keeps of it in memory.

Shapes: ... any leading dimensions, D d_model, F the width of the hidden layer.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from lm.model.fused.silu_gate import silu_gate
from lm.model.linear import Linear


class FeedForwardLayer(nn.Module, ABC):
    """A layer applied to each position independently: (..., D) -> (..., D)."""

    num_input_products: ClassVar[int]
    """How many matrix products read the layer's input."""
    num_saved: ClassVar[int]
    """How many tensors (..., F) the forward pass saves for the backward pass, the hidden activations included."""
    num_backward: ClassVar[int]
    """How many more tensors (..., F) the backward pass holds at its peak."""

    @abstractmethod
    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()

    @staticmethod
    @abstractmethod
    def hidden_width(d_ff: int) -> int:
        """F for `model.d_ff`."""

    @staticmethod
    @abstractmethod
    def num_parameters(d_model: int, d_ff: int) -> int: ...

    @staticmethod
    @abstractmethod
    def flops_per_token(d_model: int, d_ff: int) -> int:
        """FLOPs of the forward pass in matrix products, 2 per weight."""


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x), elementwise (Hendrycks & Gimpel 2016)."""
    return x * torch.sigmoid(x)


class SwiGLU(FeedForwardLayer):
    """y = W2 (silu(W1 x) · W3 x), with a hidden layer of width d_ff (Shazeer 2020)."""

    num_input_products: ClassVar[int] = 2
    num_saved: ClassVar[int] = 3  # W1 x, W3 x and the gated product
    num_backward: ClassVar[int] = 2

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__(d_model, d_ff)
        self.w1 = Linear(d_model, d_ff)
        self.w2 = Linear(d_ff, d_model)
        self.w3 = Linear(d_model, d_ff)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(silu_gate(self.w1(x), self.w3(x)))

    @staticmethod
    def hidden_width(d_ff: int) -> int:
        return d_ff

    @staticmethod
    def num_parameters(d_model: int, d_ff: int) -> int:
        return 3 * d_model * d_ff

    @staticmethod
    def flops_per_token(d_model: int, d_ff: int) -> int:
        return 6 * d_model * d_ff


class UngatedFeedForward(FeedForwardLayer):
    """y = W2 f(W1 x), with a hidden layer of width 3/2 d_ff: two matrices with the parameters of SwiGLU's three."""

    num_input_products: ClassVar[int] = 1

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__(d_model, d_ff)
        self.w1 = Linear(d_model, self.hidden_width(d_ff))
        self.w2 = Linear(self.hidden_width(d_ff), d_model)

    @staticmethod
    @abstractmethod
    def activation(x: Tensor) -> Tensor:
        """f, elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.activation(self.w1(x)))

    @staticmethod
    def hidden_width(d_ff: int) -> int:
        return 3 * d_ff // 2

    @staticmethod
    def num_parameters(d_model: int, d_ff: int) -> int:
        return 2 * d_model * UngatedFeedForward.hidden_width(d_ff)

    @staticmethod
    def flops_per_token(d_model: int, d_ff: int) -> int:
        return 4 * d_model * UngatedFeedForward.hidden_width(d_ff)


class SiLU(UngatedFeedForward):
    """y = W2 silu(W1 x)."""

    num_saved: ClassVar[int] = 3  # W1 x, its sigmoid and their product
    num_backward: ClassVar[int] = 2

    @staticmethod
    def activation(x: Tensor) -> Tensor:
        return silu(x)


class ReLUSquared(UngatedFeedForward):
    """y = W2 relu(W1 x)² (So et al. 2021, Primer)."""

    num_saved: ClassVar[int] = 2  # relu(W1 x) and its square
    num_backward: ClassVar[int] = 2

    @staticmethod
    def activation(x: Tensor) -> Tensor:
        return torch.relu(x).square()


FEED_FORWARDS: dict[str, type[FeedForwardLayer]] = {"swiglu": SwiGLU, "silu": SiLU, "relu_squared": ReLUSquared}
"""The class of each value of `model.ffn`."""
