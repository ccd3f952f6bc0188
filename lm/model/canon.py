"""Canon layers: each position mixes in what the few positions before it hold (Allen-Zhu 2025, Physics of Language
Models: Part 4.1).

Beside its equation, the layer reports what it costs. `element` is the size in bytes of one number of its input.

Shapes: ... any leading dimensions, B batch, T sequence, D d_model.
"""

import torch
from torch import Tensor, nn

from lm.model.cache import CANON_WIDTH, LayerCache


class CanonLayer(nn.Module):
    """y_t = h_t + w_0 h_t + w_1 h_{t-1} + w_2 h_{t-2} + w_3 h_{t-3}, elementwise; `weight` (4, D) holds w_0 to w_3.

    This is a causal depthwise convolution with a residual connection. What lies before the text, or before the document
    with `document_starts`, counts as 0.

    The weights begin at 0, so the layer begins as the identity. (The author's code uses PyTorch's default for
    convolutions, uniform between -1/2 and 1/2.) Zeros have a nonzero gradient, and drawing no random numbers keeps all
    other initial weights equal to those of the model without Canon layers, so a comparison shows the effect of the
    layer alone.

    Args:
        place: which of the two Canon layers of a block this is, 0 in front of attention (A in the paper) or 1 in front
            of the feed-forward layer (C).

    Example: with D = 1 and weights (0, 1, 0, 0), the inputs 1, 2, 3 become 1, 2 + 1, 3 + 2.
    """

    def __init__(self, d_model: int, place: int) -> None:
        super().__init__()
        self.place = place
        self.weight = nn.Parameter(torch.zeros(CANON_WIDTH, d_model))

    def forward(self, h: Tensor, document_starts: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        """(..., T, D) -> (..., T, D); arguments as for `TransformerLM.forward`."""
        length, num_earlier = h.shape[-2], CANON_WIDTH - 1
        if cache is None:
            padded = nn.functional.pad(h, (0, 0, num_earlier, 0))  # (..., 3 + T, D)
        else:
            padded = cache.with_earlier_inputs(self.place, h)
        positions = torch.arange(length, device=h.device)
        y = h
        for distance, weight in enumerate(self.weight.to(h.dtype)):
            earlier = padded[..., num_earlier - distance :, :][..., :length, :]  # position t holds h_{t - distance}
            if document_starts is not None:
                is_outside = positions - distance < document_starts  # (B, T)
                earlier = earlier.masked_fill(is_outside[..., None], 0)
            y = torch.addcmul(y, weight, earlier)
        return y

    @staticmethod
    def num_parameters(d_model: int) -> int:
        return CANON_WIDTH * d_model

    @staticmethod
    def flops_per_token(d_model: int) -> int:
        """FLOPs of the forward pass: one multiplication and one addition per weight."""
        return 2 * CANON_WIDTH * d_model

    @staticmethod
    def saved_bytes_per_token(d_model: int, element: int) -> int:
        """Bytes that the forward pass saves for the backward pass: its padded input."""
        return element * d_model


class NoCanon(nn.Module):
    """y = h: the model without Canon layers."""

    def forward(self, h: Tensor, document_starts: Tensor | None = None, cache: LayerCache | None = None) -> Tensor:
        return h
