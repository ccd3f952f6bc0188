"""Attention to the keys and values in the cache: two matrix products, whose weights are the cache.

The keys of a head are panels of 16 positions, so that the product of a query with a panel is 16 scores. The values are
panels of 16 components of the head, whose inputs are the positions, so that the product of the probabilities with a
panel is 16 components of the result. Both are float32 or bfloat16 (see lm/generation/kernels/layout.py).

Shapes: S positions of a head in the cache, rounded up to whole blocks, K d_head.
"""

import math

import numpy as np
from numba import njit, types
from numba.extending import overload

from lm.generation.kernels.elementwise import fast
from lm.generation.kernels.layout import BLOCK, FLOAT32, PANEL, round_up
from lm.generation.kernels.products import multiply
from lm.tokenizer.text.fast.intrinsics import compiled, exp, floats_at, inlined, uint16s_at

_round_up = inlined(round_up)


def widen(number):
    """Convert a stored number to float32: a float32 as it is, a uint16 as the upper half of the bits."""
    raise NotImplementedError


@overload(widen, inline="always")
def _widen(number):
    if number == types.uint16:
        return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)
    return lambda number: number


@njit(error_model="numpy")
def narrow(number):
    """Convert a float32 to the bits of a bfloat16, rounding to nearest, ties to even."""
    bits = np.float32(number).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@compiled
def write_key(kind, keys, position, k, d_head):
    """Write the key `k`, a pointer to K floats, of one position into a head's keys, an address."""
    panel = position // PANEL * PANEL * _round_up(d_head, BLOCK)
    lane = position % PANEL
    if kind == FLOAT32:
        for d in range(d_head):
            floats_at(keys)[panel + d * PANEL + lane] = k[d]
    else:
        for d in range(d_head):
            uint16s_at(keys)[panel + (d // 2 * PANEL + lane) * 2 + d % 2] = narrow(k[d])


@compiled
def write_value(kind, values, num_columns, position, v, d_head):
    """Write the value `v`, a pointer to K floats, of one position into a head's values, an address."""
    for d in range(d_head):
        panel, lane = d // PANEL * PANEL * num_columns, d % PANEL
        if kind == FLOAT32:
            floats_at(values)[panel + position * PANEL + lane] = v[d]
        else:
            uint16s_at(values)[panel + (position // 2 * PANEL + lane) * 2 + position % 2] = narrow(v[d])


@compiled
def clear_values(kind, values, num_columns, first, d_head):
    """Set the values of the positions from `first` to the end of its block to 0.

    Products read whole blocks. The probability of a position that is not filled yet is 0, and so must be the product.
    What an earlier text has left there may be NaN.
    """
    for panel in range(0, _round_up(d_head, PANEL) * num_columns, PANEL * num_columns):
        for position in range(first, _round_up(first, BLOCK)):
            for lane in range(PANEL):
                if kind == FLOAT32:
                    floats_at(values)[panel + position * PANEL + lane] = np.float32(0)
                else:
                    uint16s_at(values)[panel + (position // 2 * PANEL + lane) * 2 + position % 2] = np.uint16(0)


@compiled
def attend(product, kind, q, q_stride, num_rows, length, keys, values, num_columns, d_head, scratch, out, out_stride):
    """out = softmax(q Kᵀ / sqrt(K)) V for queries of consecutive positions, of which the first sees `length` positions.

    All arguments are int64: addresses, and the bytes from one row of `q` or `out` to the next. `product` is the address
    of the kernel that multiplies by numbers of the type `kind`, and `scratch` that of `num_rows` (S + K rounded up to a
    panel) floats.
    """
    size = 4 if kind == FLOAT32 else 2
    num_panels = _round_up(length + num_rows - 1, PANEL) // PANEL
    head_blocks, stride = _round_up(d_head, BLOCK) // BLOCK, 4 * num_columns
    panel_stride = PANEL * head_blocks * BLOCK * size
    multiply(product, keys, panel_stride, num_panels, head_blocks, q, q_stride, num_rows, scratch, stride)
    num_blocks = _round_up(length + num_rows - 1, BLOCK) // BLOCK
    for row in range(num_rows):
        _softmax(floats_at(scratch + row * stride), length + row, num_blocks * BLOCK, d_head)
    sums, sums_stride = scratch + num_rows * stride, 4 * _round_up(d_head, PANEL)
    panel_stride, num_panels = PANEL * num_columns * size, _round_up(d_head, PANEL) // PANEL
    multiply(product, values, panel_stride, num_panels, num_blocks, scratch, stride, num_rows, sums, sums_stride)
    for row in range(num_rows):
        for d in range(d_head):
            floats_at(out + row * out_stride)[d] = floats_at(sums + row * sums_stride)[d]


@fast
def _softmax(scores, length, padded, d_head):
    """Replace the first `length` scores by their probabilities, and those up to `padded` by 0."""
    scale = np.float32(1 / math.sqrt(d_head))
    largest = _largest(scores, length)
    total = np.float32(0)
    for s in range(length):
        scores[s] = exp((scores[s] - largest) * scale)
        total += scores[s]
    share = np.float32(1) / total
    for s in range(length):
        scores[s] *= share
    for s in range(length, padded):
        scores[s] = np.float32(0)


# Without "nnan", the largest of many numbers would have to be found one by one.
@njit(fastmath={"nnan", "nsz"}, error_model="numpy")
def _largest(numbers, count):
    largest = np.float32(-np.inf)
    for number in range(count):
        largest = max(largest, numbers[number])
    return largest
