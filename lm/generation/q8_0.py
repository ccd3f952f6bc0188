"""q8_0, the eight-bit type of GGUF files: blocks of 32 weights that share a scale.

Each block of consecutive weights of a row is stored as integers from -127 to 127 and one float16, by which they are
multiplied. That is 8.5 bits per weight. The arithmetic is that of llama.cpp's reference, so that the blocks are bit for
bit those that other programs write.
"""

import torch
from torch import Tensor, nn

from lm.errors import UserError

BLOCK = 32
LARGEST = 127 * 65504.0  # the scale is at most the largest float16
_ROWS_AT_ONCE = 2**18  # weights, to stay in the processor's cache


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales (rows, blocks) in float16 and the numbers (rows, blocks, 32) in int8 of a matrix.

    A row whose length is no multiple of 32 is continued with zeros.

    Example: the largest weight of a block becomes 127 or -127, and the others are rounded to steps of a 127th of it:

        >>> scales, numbers = quantize(torch.tensor([[0.5, -1.27, 0.004]]))
        >>> scales, numbers[0, 0, :3]  # 0.004 is 0.4 steps
        (tensor([[0.0100]], dtype=torch.float16), tensor([  50, -127,    0], dtype=torch.int8))

    Raises:
        UserError: a weight is not finite, or larger than q8_0 can represent.
    """
    rows, width = weight.shape
    num_blocks = -(-width // BLOCK)
    scales = torch.empty(rows, num_blocks, dtype=torch.float16)
    numbers = torch.empty(rows, num_blocks, BLOCK, dtype=torch.int8)
    at_once = max(1, _ROWS_AT_ONCE // width)
    for part, scale, number in zip(weight.detach().split(at_once), scales.split(at_once), numbers.split(at_once)):
        blocks = nn.functional.pad(part.float(), (0, -width % BLOCK)).unflatten(1, (num_blocks, BLOCK))
        largest = blocks.abs().amax(-1)
        if not (largest <= LARGEST).all():
            raise UserError(f"expected weights of at most {LARGEST:.0f} for q8_0, got {largest.max():.3g}")
        step = largest / 127
        # Halves are rounded away from zero.
        steps = blocks * torch.where(step == 0, 0.0, 1 / step)[..., None]
        magnitude = steps.abs()
        whole = magnitude.floor()
        whole += (magnitude - whole).mul_(2).floor_()
        number.copy_(whole.copysign_(steps))
        scale.copy_(step)
    return scales, numbers


def gguf_bytes(weight: Tensor) -> Tensor:
    """Return the content of a GGUF file for a matrix, (rows, 34 blocks) in uint8: each scale before its 32 numbers."""
    scales, numbers = quantize(weight)
    return torch.cat((scales[..., None].view(torch.uint8), numbers.view(torch.uint8)), -1).flatten(1)
