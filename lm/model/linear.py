"""Linear layers without bias, and the embedding table.

Shapes: ... any leading dimensions, D d_model.
"""

import math

import torch
from torch import Tensor, nn

from lm.model.fused import products


def matmul(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ: (..., d_in), (d_out, d_in) -> (..., d_out), computed in the way that is fastest on this processor."""
    if products.applies(x, weight):
        return products.matmul(x, weight)
    return x @ weight.T


class Linear(nn.Module):
    """y = x Wᵀ, without bias; `weight` is (d_out, d_in).

    The weights are drawn from a normal distribution with variance 2 / (d_in + d_out) (Glorot & Bengio 2010), truncated
    at three standard deviations.
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        std = math.sqrt(2 / (d_in + d_out))
        nn.init.trunc_normal_(self.weight, std=std, a=-3 * std, b=3 * std)

    def forward(self, x: Tensor) -> Tensor:
        return matmul(x, self.weight)  # (..., d_in) -> (..., d_out)

    @staticmethod
    def num_parameters(d_in: int, d_out: int) -> int:
        return d_in * d_out

    @staticmethod
    def flops_per_token(d_in: int, d_out: int) -> int:
        """FLOPs of the forward pass: one multiplication and one addition per weight."""
        return 2 * d_in * d_out


class Embedding(nn.Module):
    """A table of vectors, one row of `weight` (num_embeddings, d_model) per id.

    The weights are drawn from a normal distribution truncated at three standard deviations.
    """

    def __init__(self, num_embeddings: int, d_model: int, std: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_embeddings, d_model))
        nn.init.trunc_normal_(self.weight, std=std, a=-3 * std, b=3 * std)

    def forward(self, token_ids: Tensor) -> Tensor:
        # Not self.weight[token_ids]: its backward pass sums the gradients of a token in an order that varies between
        # runs.
        return nn.functional.embedding(token_ids, self.weight)  # (...) -> (..., D)

    @staticmethod
    def num_parameters(num_embeddings: int, d_model: int) -> int:
        return num_embeddings * d_model
