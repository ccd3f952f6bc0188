"""How weights lie in memory for the kernels: panels of 16 outputs, whose inputs are interleaved.

A kernel multiplies one input by 16 weights at a time, one of each output, so that 16 sums grow side by side in a
register and are never added across it. The weights are therefore stored in the order in which they are read:

    float32   [input][output]                     64 bytes hold 1 input of the 16 outputs
    bfloat16  [pair of inputs][output][2]         64 bytes hold 2
    int8      [four inputs][output][4]            64 bytes hold 4; behind all of them, the scales [block][output]

The weights of int8 are those of q8_0 (see `lm.generation.q8_0`): 32 consecutive inputs of an output are a block and
share a scale in float16. Stored is the weight plus 128, because the instruction that multiplies bytes wants one factor
without a sign. Inputs are padded with zeros to whole blocks for every type, and outputs to whole panels.
"""

FLOAT32, BFLOAT16, INT8 = 0, 1, 2  # the types of weights

PANEL = 16  # outputs
BLOCK = 32  # inputs
LINE = 64  # bytes: of a cache line, of a register of AVX-512, and what the address of every panel is a multiple of

# The inputs of int8 weights are quantized in blocks too. These are the places in a block, in bytes, of the number that
# its sums start from, in int32 (see lm/generation/kernels/tiles.py), the scale, in float32, and 32 numbers in int8.
START, SCALE, NUMBERS, QUANTIZED_BLOCK = 0, 4, 8, 8 + BLOCK


def round_up(count: int, unit: int) -> int:
    """The smallest multiple of `unit` that is at least `count`."""
    return (count + unit - 1) // unit * unit


def panel_bytes(kind: int, num_blocks: int) -> int:
    """The size of a panel with `num_blocks` blocks of inputs.

    Example: in int8, one block of 16 outputs has 512 bytes of weights and 32 of scales, and takes 576 bytes.
    """
    if kind == INT8:
        return (num_blocks * PANEL * (BLOCK + 2) + LINE - 1) // LINE * LINE
    return num_blocks * BLOCK * PANEL * (4 if kind == FLOAT32 else 2)
