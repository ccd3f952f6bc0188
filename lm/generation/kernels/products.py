"""Matrix products of a few rows, or of many, with weights in panels (see lm/generation/kernels/layout.py)."""

from lm.generation.kernels.layout import (
    BFLOAT16,
    BLOCK,
    FLOAT32,
    INT8,
    PANEL,
    QUANTIZED_BLOCK,
)
from lm.generation.kernels.tiles import MOST_ROWS, make_tile, quantize_block
from lm.tokenizer.text.fast.intrinsics import Int, compiled, kernel

_f32_1, _f32_4, _f32_most = (make_tile(FLOAT32, num_rows) for num_rows in (1, 4, MOST_ROWS))
_bf16_1, _bf16_4, _bf16_most = (make_tile(BFLOAT16, num_rows) for num_rows in (1, 4, MOST_ROWS))
_int8_1, _int8_4, _int8_most = (make_tile(INT8, num_rows) for num_rows in (1, 4, MOST_ROWS))


def _make_multiply(tile_1, tile_4, tile_most):
    """Return the loop over panels and rows for one type of weights."""

    @compiled
    def multiply(panels, panel_stride, num_panels, num_blocks, x, x_stride, num_rows, out, out_stride):
        for number in range(num_panels):
            panel, at, row = panels + number * panel_stride, out + number * 4 * PANEL, 0
            while row + MOST_ROWS <= num_rows:
                tile_most(panel, num_blocks, x + row * x_stride, x_stride, at + row * out_stride, out_stride)
                row += MOST_ROWS
            while row + 4 <= num_rows:
                tile_4(panel, num_blocks, x + row * x_stride, x_stride, at + row * out_stride, out_stride)
                row += 4
            while row < num_rows:
                tile_1(panel, num_blocks, x + row * x_stride, x_stride, at + row * out_stride, out_stride)
                row += 1

    return multiply


_multiply_float32 = _make_multiply(_f32_1, _f32_4, _f32_most)
_multiply_bfloat16 = _make_multiply(_bf16_1, _bf16_4, _bf16_most)
_multiply_int8 = _make_multiply(_int8_1, _int8_4, _int8_most)


@compiled
def multiply(kind, panels, panel_stride, num_panels, num_blocks, x, x_stride, num_rows, out, out_stride):
    """out = x Wᵀ for the outputs in some panels of W, which begin at the address `panels`.

    Everything is an int64, as in `lm.generation.kernels.tiles.make_tile`; `kind` is the type of the weights, and
    `panel_stride` the number of bytes from one panel to the next.
    """
    if kind == FLOAT32:
        _multiply_float32(panels, panel_stride, num_panels, num_blocks, x, x_stride, num_rows, out, out_stride)
    elif kind == BFLOAT16:
        _multiply_bfloat16(panels, panel_stride, num_panels, num_blocks, x, x_stride, num_rows, out, out_stride)
    else:
        _multiply_int8(panels, panel_stride, num_panels, num_blocks, x, x_stride, num_rows, out, out_stride)


@compiled
def quantize(x, x_stride, num_blocks, num_rows, out, out_stride):
    """Round rows of x to eight bits, in blocks of 32 numbers that share a scale, for products with int8 weights."""
    for row in range(num_rows):
        for block in range(num_blocks):
            quantize_block(x + row * x_stride + block * 4 * BLOCK, out + row * out_stride + block * QUANTIZED_BLOCK)


@kernel
def multiply_int8(
    panels: Int,
    panel_stride: Int,
    num_panels: Int,
    num_blocks: Int,
    x: Int,
    x_stride: Int,
    num_rows: Int,
    quantized: Int,
    quantized_stride: Int,
    out: Int,
    out_stride: Int,
):
    """`quantize` followed by `multiply`, for weights in int8; `quantized` is overwritten."""
    quantize(x, x_stride, num_blocks, num_rows, quantized, quantized_stride)
    _multiply_int8(panels, panel_stride, num_panels, num_blocks, quantized, quantized_stride, num_rows, out, out_stride)
    return 0
