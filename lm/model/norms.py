"""Normalization layers.

Beside its equation, each norm reports what it costs: its number of parameters, and the memory that a training step
needs for it. `element` is the size in bytes of one number of the norm's input.

Shapes: ... any leading dimensions, D d_model.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from lm.model.fused.rms_norm import rms_norm


class NormLayer(nn.Module, ABC):
    """A norm over vectors of width `d_model`: (..., D) -> (..., D)."""

    output_follows_autocast: ClassVar[bool]
    """Whether the output has autocast's dtype. If not, every product that reads it converts it again."""

    @abstractmethod
    def __init__(self, d_model: int) -> None:
        super().__init__()

    @staticmethod
    @abstractmethod
    def num_parameters(d_model: int) -> int: ...

    @staticmethod
    @abstractmethod
    def saved_bytes_per_token(d_model: int, element: int) -> int:
        """Bytes that the forward pass saves for the backward pass."""

    @staticmethod
    @abstractmethod
    def backward_bytes_per_token(d_model: int) -> int:
        """Bytes of temporary tensors in the backward pass."""


class RMSNorm(NormLayer):
    """y = x / sqrt(mean(x²) + eps) · weight, computed in float32 (Zhang & Sennrich 2019).

    Under autocast the output has autocast's dtype, so that the products that read it need not convert it.
    """

    output_follows_autocast: ClassVar[bool] = True

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__(d_model)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return rms_norm(x, self.weight, self.eps, dtype)

    @staticmethod
    def num_parameters(d_model: int) -> int:
        return d_model

    @staticmethod
    def saved_bytes_per_token(d_model: int, element: int) -> int:
        return element * d_model + 4  # the input, and one float32 factor

    @staticmethod
    def backward_bytes_per_token(d_model: int) -> int:
        return 5 * 4 * d_model  # five float32 tensors of the size of the input


class LayerNorm(NormLayer):
    """y = (x - mean(x)) / sqrt(var(x) + eps) · weight + bias, computed in float32 (Ba et al. 2016)."""

    output_follows_autocast: ClassVar[bool] = False

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__(d_model)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        x32 = x32 - x32.mean(-1, keepdim=True)
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (x32 * self.weight + self.bias).to(x.dtype)

    @staticmethod
    def num_parameters(d_model: int) -> int:
        return 2 * d_model

    @staticmethod
    def saved_bytes_per_token(d_model: int, element: int) -> int:
        return 4 * (2 * d_model + 1)  # x - mean(x) and the normalized x in float32, and one factor

    @staticmethod
    def backward_bytes_per_token(d_model: int) -> int:
        return 5 * 4 * d_model


class NoNorm(NormLayer):
    """y = x: the ablation without normalization."""

    output_follows_autocast: ClassVar[bool] = False

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)

    def forward(self, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def num_parameters(d_model: int) -> int:
        return 0

    @staticmethod
    def saved_bytes_per_token(d_model: int, element: int) -> int:
        return 0

    @staticmethod
    def backward_bytes_per_token(d_model: int) -> int:
        return 0


NORMS: dict[str, type[NormLayer]] = {"rmsnorm": RMSNorm, "layernorm": LayerNorm, "none": NoNorm}
"""The class of each value of `model.norm`."""
