"""Attention of one query to the keys and values in the cache, which are float32 or bfloat16."""

import math

import numpy as np
from numba import njit, types
from numba.extending import overload

_FAST = {"reassoc", "contract", "nsz"}  # sums may be computed in any order


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


@njit(fastmath=_FAST, error_model="numpy")
def attend(q, keys, values, d_head, length, scores, out):
    """out = softmax(q Kᵀ / sqrt(K)) V over the first `length` of the keys and values (S, K), four positions at a time.

    All arguments but `d_head` and `length` are pointers. `scores` (S,) is overwritten.
    """
    blocked = length // 4 * 4  # positions in whole blocks of four
    for s in range(0, blocked, 4):
        at0, at1, at2, at3 = s * d_head, (s + 1) * d_head, (s + 2) * d_head, (s + 3) * d_head
        sum0 = sum1 = sum2 = sum3 = np.float32(0)
        for d in range(d_head):
            sum0 += q[d] * widen(keys[at0 + d])
            sum1 += q[d] * widen(keys[at1 + d])
            sum2 += q[d] * widen(keys[at2 + d])
            sum3 += q[d] * widen(keys[at3 + d])
        scores[s], scores[s + 1], scores[s + 2], scores[s + 3] = sum0, sum1, sum2, sum3
    for s in range(blocked, length):
        total = np.float32(0)
        for d in range(d_head):
            total += q[d] * widen(keys[s * d_head + d])
        scores[s] = total

    scale = np.float32(1 / math.sqrt(d_head))
    largest = np.float32(-np.inf)
    for s in range(length):
        largest = max(largest, scores[s])
    total = np.float32(0)
    for s in range(length):
        scores[s] = exp((scores[s] - largest) * scale)
        total += scores[s]

    for d in range(d_head):
        out[d] = np.float32(0)
    for s in range(0, blocked, 4):
        p0, p1, p2, p3 = scores[s], scores[s + 1], scores[s + 2], scores[s + 3]
        at0, at1, at2, at3 = s * d_head, (s + 1) * d_head, (s + 2) * d_head, (s + 3) * d_head
        for d in range(d_head):
            near = p0 * widen(values[at0 + d]) + p1 * widen(values[at1 + d])
            out[d] += near + p2 * widen(values[at2 + d]) + p3 * widen(values[at3 + d])
    for s in range(blocked, length):
        for d in range(d_head):
            out[d] += scores[s] * widen(values[s * d_head + d])
    for d in range(d_head):
        out[d] /= total


@njit(error_model="numpy")
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
