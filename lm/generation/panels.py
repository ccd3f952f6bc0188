"""Weights in the order in which the kernels read them; see lm/generation/kernels/layout.py."""

import torch
from torch import Tensor, nn

from lm.generation.kernels.layout import BLOCK, INT8, PANEL, panel_bytes, round_up
from lm.generation.q8_0 import quantize


def pack(weight: Tensor) -> Tensor:
    """The panels of a matrix (d_out, d_in) in float32 or bfloat16: (panels, bytes) in uint8."""
    d_out, d_in = weight.shape
    together = 4 // weight.itemsize  # inputs of an output that are side by side: 1 or 2
    padded = nn.functional.pad(weight.detach(), (0, -d_in % BLOCK, 0, -d_out % PANEL))
    by_panel = padded.view(-1, PANEL, padded.shape[1] // together, together)
    return by_panel.transpose(1, 2).contiguous().flatten(1).view(torch.uint8)


def pack_int8(weight: Tensor) -> Tensor:
    """The panels of a matrix (d_out, d_in) in int8: (panels, bytes) in uint8."""
    d_out, d_in = weight.shape
    num_blocks = round_up(d_in, BLOCK) // BLOCK
    scales, numbers = quantize(weight)
    missing = -d_out % PANEL
    scales = nn.functional.pad(scales, (0, 0, 0, missing)).view(-1, PANEL, num_blocks)
    numbers = nn.functional.pad(numbers, (0, 0, 0, 0, 0, missing)).flatten(1)
    fours = numbers.view(torch.int32).view(-1, PANEL, num_blocks * BLOCK // 4).transpose(1, 2)
    panels = torch.zeros(len(scales), panel_bytes(INT8, num_blocks), dtype=torch.uint8)
    in_panels, scales_in_panels = _parts(panels, num_blocks)
    in_panels.copy_(fours)
    in_panels.bitwise_xor_(-0x7F7F7F80)  # 0x80808080: adds 128 to each byte
    scales_in_panels.copy_(scales.transpose(1, 2))
    return panels


def unpack_int8(panels: Tensor, rows: Tensor, d_in: int) -> Tensor:
    """The weights (..., d_in) in float32 of some rows (...) of the matrix."""
    num_blocks = round_up(d_in, BLOCK) // BLOCK
    fours, scales = _parts(panels, num_blocks)
    panel, output = rows // PANEL, rows % PANEL
    numbers = (fours[panel, :, output] ^ -0x7F7F7F80).view(torch.int8).unflatten(-1, (num_blocks, BLOCK))
    return (numbers * scales[panel, :, output].float()[..., None]).flatten(-2)[..., :d_in]


def _parts(panels: Tensor, num_blocks: int) -> tuple[Tensor, Tensor]:
    """Views of panels in int8: the weights, four at a time, (panels, 8 blocks, 16) in int32, and the scales
    (panels, blocks, 16) in float16."""
    weights = panels[:, : num_blocks * BLOCK * PANEL]
    scales = panels[:, weights.shape[1] : weights.shape[1] + num_blocks * PANEL * 2]
    return weights.view(torch.int32).unflatten(1, (-1, PANEL)), scales.view(torch.float16).unflatten(1, (-1, PANEL))
