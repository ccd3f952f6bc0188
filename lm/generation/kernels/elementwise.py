"""What a step does with vectors besides multiplying them by matrices: norms, RoPE and SiLU.

Vectors are pointers to float32. No loop contains anything that would keep LLVM from computing many numbers at once.
"""

import numpy as np
from numba import njit

from lm.generation.kernels.plan import EPS, LAYER_NORM, NO_NORM
from lm.tokenizer.text.fast.intrinsics import exp

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
