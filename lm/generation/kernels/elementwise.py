"""What a step does with vectors besides multiplying them by matrices: norms, RoPE, SiLU and exp.

Vectors are pointers to float32. A loop has nothing in it that would keep LLVM from computing many numbers at once.
"""

import math

import numpy as np
from numba import njit

from lm.generation.kernels.plan import EPS, LAYER_NORM, NO_NORM
from lm.tokenizer.text.fast.intrinsics import compiled

fast = njit(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")  # sums may be computed in any order
_EPS = np.float32(EPS)


@fast
def normalize(kind, x, weight, bias, out, width):
    """out = a norm of x; for NO_NORM only weight and bias apply."""
    mean = np.float32(0)
    if kind == LAYER_NORM:
        for d in range(width):
            mean += x[d]
        mean /= np.float32(width)
    squares = np.float32(0)
    for d in range(width):
        squares += (x[d] - mean) ** 2
    scale = np.float32(1) / np.sqrt(squares / np.float32(width) + _EPS)
    if kind == NO_NORM:
        scale = np.float32(1)
    for d in range(width):
        out[d] = (x[d] - mean) * scale * weight[d] + bias[d]


@fast
def qk_norm(head, weight, d_head):
    """Apply RMSNorm to a query or key, in place."""
    squares = np.float32(0)
    for d in range(d_head):
        squares += head[d] ** 2
    scale = np.float32(1) / np.sqrt(squares / np.float32(d_head) + _EPS)
    for d in range(d_head):
        head[d] *= scale * weight[d]


@fast
def rotate(head, cos, sin, d_head):
    """Apply RoPE to a query or key, in place; `cos` and `sin` are those of its position, as in `RotaryEmbedding`."""
    for d in range(0, d_head, 2):
        even, odd = head[d], head[d + 1]
        head[d] = even * cos[d] + odd * sin[d]
        head[d + 1] = odd * cos[d + 1] + even * sin[d + 1]


@fast
def silu(x, count):
    """Apply SiLU in place."""
    for f in range(count):
        x[f] = x[f] / (np.float32(1) + exp(-x[f]))


@compiled
def exp(x):
    """exp(x) for x from -87 to 88, in operations that the compiler can vectorize; x outside is clamped to that range.

    With x = (n + f) ln 2, integer n and |f| <= 1/2, exp(x) = 2^n 2^f. 2^n is written into the exponent bits of a float,
    and 2^f is its Taylor series up to the sixth power; the seventh would be less than half a unit in the last place.
    """
    x = min(max(x, np.float32(-87)), np.float32(88)) * np.float32(1 / math.log(2))
    n = np.floor(x + np.float32(0.5))
    f = (x - n) * np.float32(math.log(2))
    series = np.float32(1 / 720)
    series = series * f + np.float32(1 / 120)
    series = series * f + np.float32(1 / 24)
    series = series * f + np.float32(1 / 6)
    series = series * f + np.float32(1 / 2)
    series = series * f + np.float32(1)
    series = series * f + np.float32(1)
    return series * np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
