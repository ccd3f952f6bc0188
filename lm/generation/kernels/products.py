"""Matrix products of a few rows, or of many, with weights in panels (see lm/generation/kernels/layout.py)."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lm.generation.kernels.layout import BFLOAT16, BLOCK, FLOAT32, INT8, PANEL, QUANTIZED_BLOCK
from lm.generation.kernels.tiles import MOST_ROWS, make_tile, quantize_block
from lm.tokenizer.text.fast.intrinsics import Int, compiled, kernel


def _make_multiply(name, kind):
    """Return the kernel `name`, which computes out = x Wᵀ for the outputs in some panels of W.

    `panels` is the address of the first panel; the others follow in steps of `panel_stride` bytes. `num_blocks`, `x`,
    `x_stride`, `out` and `out_stride` are those of `lm.generation.kernels.tiles.make_tile`, for `num_rows` rows.
    """
    tile_1, tile_4, tile_most = (make_tile(kind, num_rows) for num_rows in (1, 4, MOST_ROWS))

    def multiply(
        panels: Int,
        panel_stride: Int,
        num_panels: Int,
        num_blocks: Int,
        x: Int,
        x_stride: Int,
        num_rows: Int,
        out: Int,
        out_stride: Int,
    ):
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
        return 0

    multiply.__name__ = name
    return kernel(multiply)


multiply_float32 = _make_multiply("multiply_float32", FLOAT32)
multiply_bfloat16 = _make_multiply("multiply_bfloat16", BFLOAT16)
multiply_int8 = _make_multiply("multiply_int8", INT8)


@intrinsic
def multiply(_, function, panels, panel_stride, num_panels, num_blocks, x, x_stride, num_rows, out, out_stride):
    """Call one of the kernels above, by the address `function`.

    Called by name, they would be compiled again with every function that multiplies.
    """

    def generate(context, builder, signature, arguments):
        function, *numbers = arguments
        number = ir.IntType(64)
        builder.call(builder.inttoptr(function, ir.FunctionType(number, [number] * len(numbers)).as_pointer()), numbers)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), generate


@compiled
def quantize(x, x_stride, num_blocks, num_rows, out, out_stride):
    """Round rows of x to eight bits, in blocks of 32 numbers that share a scale, for products with int8 weights."""
    for row in range(num_rows):
        for block in range(num_blocks):
            quantize_block(x + row * x_stride + block * 4 * BLOCK, out + row * out_stride + block * QUANTIZED_BLOCK)


@kernel
def quantize_rows(x: Int, x_stride: Int, num_blocks: Int, num_rows: Int, out: Int, out_stride: Int):
    """`quantize`, for Python."""
    quantize(x, x_stride, num_blocks, num_rows, out, out_stride)
    return 0
