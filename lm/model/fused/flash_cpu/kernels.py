"""FlashAttention-2 on a CPU (Dao 2023, arXiv 2307.08691, algorithms 1 and 2), called by flash_attention.py.

A tile of queries has 16 rows. It visits the keys in tiles of up to 512, up to the last key that it sees. Each head of
each sequence is computed by one thread, in its own scratch memory, so nothing is accumulated across threads and every
run gives the same bits. Everything is in float32.

The rows of a head are first copied to scratch memory, where they follow each other, in float32 and padded with zeros to
whole tiles; so that a product with transposed keys or values also reads 16 numbers at once, these are copied as panels:
(d, 16) for every 16 rows. All addresses and strides are in bytes.

The names are the paper's. Shapes: T sequence, d d_head, r = 16 and c the number of rows in a tile of queries and of
keys.
"""

import math

import numpy as np
from numba import njit

from lm.model.fused.flash_cpu import task as at
from lm.model.fused.flash_cpu.tile import TILE_ROWS, WIDE, largest, make_product
from lm.tokenizer.text.fast.intrinsics import (
    Int,
    compiled,
    exp,
    fetch_add,
    floats_at,
    int64s_at,
    kernel,
    prefetch,
    uint16s_at,
)

_COLUMNS, TILE, _SCORES = at.COLUMNS, at.TILE, at.SCORES_STRIDE
_NEXT = 4 * TILE  # bytes from one vector of a row to the next
_ROWS_AHEAD = 16
_add_wide, _add_narrow = make_product(WIDE // TILE), make_product(1)
_fast = njit(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")  # sums may be computed in any order
_LOWEST = np.float32(np.finfo(np.float32).min)


@kernel
def forward(task: Int):
    """Algorithm 1 for every head that this thread takes: writes OUTPUT and LOG_SUM_EXP."""
    numbers = int64s_at(task)
    scratch = numbers[at.SCRATCH] + fetch_add(numbers, at.NEXT_THREAD) * numbers[at.SCRATCH_BYTES]
    head = fetch_add(numbers, at.NEXT_HEAD)
    while head < numbers[at.NUM_HEADS]:
        _forward(numbers, head, scratch)
        head = fetch_add(numbers, at.NEXT_HEAD)
    return 0


@kernel
def backward(task: Int):
    """Algorithm 2 for every head that this thread takes: writes the gradients of queries, keys and values."""
    numbers = int64s_at(task)
    scratch = numbers[at.SCRATCH] + fetch_add(numbers, at.NEXT_THREAD) * numbers[at.SCRATCH_BYTES]
    head = fetch_add(numbers, at.NEXT_HEAD)
    while head < numbers[at.NUM_HEADS]:
        _backward(numbers, head, scratch)
        head = fetch_add(numbers, at.NEXT_HEAD)
    return 0


@compiled
def _forward(numbers, head, scratch):
    length, d = numbers[at.LENGTH], numbers[at.D_HEAD]
    padded, row = _round_up(length), 4 * _round_up(d)
    Q, K, V = scratch, scratch + padded * row, scratch + 2 * padded * row
    S = scratch + 3 * padded * row  # (r, c)
    O = S + TILE * _SCORES  # (r, d)
    l, m = floats_at(O + TILE * row), floats_at(O + TILE * row + 4 * TILE)  # (r,)
    _read(numbers, at.QUERIES, head, Q, np.float32(1 / math.sqrt(d)))
    _read_panels(numbers, at.KEYS, head, K)
    _read(numbers, at.VALUES, head, V, np.float32(1))
    L = floats_at(numbers[at.LOG_SUM_EXP] + 4 * head * length)
    for first in range(0, padded, TILE):
        for i in range(TILE):
            l[i], m[i] = np.float32(0), _LOWEST
        first_key = _first_key(numbers, head, first) // TILE * TILE
        for start in range(first_key, first + TILE, _COLUMNS):
            end = min(start + _COLUMNS, first + TILE)
            _scores(Q + first * row, K, row, start, end, S)
            for i in range(TILE):
                S_i = floats_at(S + i * _SCORES)
                _mask(S_i, start, end, _first_key(numbers, head, first + i), first + i)
                m_new = max(m[i], largest(S + i * _SCORES, end - start))
                scale_down = _exp(m[i] - m_new)
                l[i], m[i] = scale_down * l[i] + _exp_and_sum(S_i, end - start, m_new), m_new
                if start > first_key:
                    _scale_row(floats_at(O + i * row), row // 4, scale_down)
            _multiply(O, row, row, S, _SCORES, 4, V + start * row, row, _NEXT, end - start, start > first_key)
        for i in range(min(TILE, length - first)):
            _scale_row(floats_at(O + i * row), row // 4, np.float32(1) / l[i])
            L[first + i] = m[i] + np.float32(math.log(l[i]))
        _write(numbers, at.OUTPUT, head, first, O, np.float32(1))


@compiled
def _backward(numbers, head, scratch):
    length, d = numbers[at.LENGTH], numbers[at.D_HEAD]
    padded, row = _round_up(length), 4 * _round_up(d)
    size, scale = padded * row, np.float32(1 / math.sqrt(d))
    Q, K, dO, K_panels, V_panels = scratch, scratch + size, scratch + 2 * size, scratch + 3 * size, scratch + 4 * size
    dK, dV, dQ = scratch + 5 * size, scratch + 6 * size, scratch + 7 * size  # dQ is (r, d)
    P = dQ + TILE * row  # (r, c)
    dS = P + TILE * _SCORES
    _read(numbers, at.QUERIES, head, Q, scale)
    _read(numbers, at.KEYS, head, K, np.float32(1))
    _read(numbers, at.OUTPUT, head, dK, np.float32(1))  # only for D
    _read(numbers, at.OUTPUT_GRADIENT, head, dO, np.float32(1))
    _read_panels(numbers, at.KEYS, head, K_panels)
    _read_panels(numbers, at.VALUES, head, V_panels)
    L = floats_at(numbers[at.LOG_SUM_EXP] + 4 * head * length)
    D = floats_at(dS + TILE * _SCORES)  # (T,)
    for i in range(padded):
        D[i] = _dot(floats_at(dO + i * row), floats_at(dK + i * row), row // 4)
    _clear(floats_at(dK), 2 * size // 4)
    for first in range(0, padded, TILE):
        first_key = _first_key(numbers, head, first) // TILE * TILE
        for start in range(first_key, first + TILE, _COLUMNS):
            end = min(start + _COLUMNS, first + TILE)
            _scores(Q + first * row, K_panels, row, start, end, P)
            _scores(dO + first * row, V_panels, row, start, end, dS)
            for i in range(TILE):
                P_i, dS_i = floats_at(P + i * _SCORES), floats_at(dS + i * _SCORES)
                _mask(P_i, start, end, _first_key(numbers, head, first + i), first + i)
                query = min(first + i, length - 1)  # padding: its dO is 0
                _exp_and_derivative(P_i, dS_i, end - start, L[query], D[first + i])
            for key in range(start, end, TILE):
                columns = 4 * (key - start)
                _multiply(dV + key * row, row, row, P + columns, 4, _SCORES, dO + first * row, row, _NEXT, TILE, True)
                _multiply(dK + key * row, row, row, dS + columns, 4, _SCORES, Q + first * row, row, _NEXT, TILE, True)
            _multiply(dQ, row, row, dS, _SCORES, 4, K + start * row, row, _NEXT, end - start, start > first_key)
        _write(numbers, at.QUERIES_GRADIENT, head, first, dQ, scale)
    for first in range(0, padded, TILE):
        _write(numbers, at.KEYS_GRADIENT, head, first, dK + first * row, np.float32(1))
        _write(numbers, at.VALUES_GRADIENT, head, first, dV + first * row, np.float32(1))


@compiled
def _multiply(out, out_stride, width, a, a_stride, a_step, b, b_step, b_next, count, keep):
    """out (r, width) = a b, added to what is there with `keep`; see `make_product`. `width` is in bytes."""
    column = 0
    while column < width:
        is_wide = column + 4 * WIDE <= width
        for row in range(0, TILE, TILE_ROWS):
            place, first = out + row * out_stride + column, a + row * a_stride
            if is_wide:
                _add_wide(place, out_stride, first, a_stride, a_step, b, b_step, b_next, count, keep)
            else:
                _add_narrow(place, out_stride, first, a_stride, a_step, b, b_step, b_next, count, keep)
        vectors = WIDE // TILE if is_wide else 1
        column += 4 * TILE * vectors
        b += b_next * vectors


@compiled
def _scores(rows, panels, row, start, end, S):
    """S (r, end - start) = rows (r, d) times the transposed rows `start` to `end` of a tensor in panels."""
    panel = TILE * row
    _multiply(S, _SCORES, 4 * (end - start), rows, row, 4, panels + start * row, 4 * TILE, panel, row // 4, False)


@compiled
def _round_up(number):
    return (number + TILE - 1) // TILE * TILE


@compiled
def _first_key(numbers, head, query):
    """The first key that a query sees."""
    if numbers[at.STARTS] == 0:
        return 0
    length = numbers[at.LENGTH]
    starts = int64s_at(numbers[at.STARTS] + 8 * (head // numbers[at.HEADS]) * length)
    return starts[min(query, length - 1)]


@compiled
def _row_address(numbers, tensor, head, row):
    sequence, head = head // numbers[at.HEADS], head % numbers[at.HEADS]
    return numbers[tensor] + sequence * numbers[tensor + 1] + head * numbers[tensor + 2] + row * numbers[tensor + 3]


@compiled
def _read_row(numbers, tensor, head, row, out, step, factor):
    """out[::step] = factor times a row of d numbers, float32 or the upper halves of float32.

    Rows are far apart, and a processor does not guess where the next one begins, so a later one is prefetched.
    """
    ahead = _row_address(numbers, tensor, head, min(row + _ROWS_AHEAD, numbers[at.LENGTH] - 1))
    for line in range(0, 4 * numbers[at.D_HEAD], 64):
        prefetch(floats_at(ahead + line), 0)
    address = _row_address(numbers, tensor, head, row)
    if numbers[at.DTYPE] == at.BFLOAT16:
        halves = uint16s_at(address)
        for k in range(numbers[at.D_HEAD]):
            out[k * step] = factor * np.uint32(np.uint32(halves[k]) << np.uint32(16)).view(np.float32)
    else:
        floats = floats_at(address)
        for k in range(numbers[at.D_HEAD]):
            out[k * step] = factor * floats[k]


@compiled
def _read(numbers, tensor, head, out, factor):
    """Copy a head's rows, multiplied by `factor`, to the address `out`."""
    length, width = numbers[at.LENGTH], _round_up(numbers[at.D_HEAD])
    if width > numbers[at.D_HEAD]:
        _clear(floats_at(out), length * width)
    for row in range(length):
        _read_row(numbers, tensor, head, row, floats_at(out + 4 * row * width), 1, factor)
    _clear(floats_at(out + 4 * length * width), (_round_up(length) - length) * width)


@compiled
def _read_panels(numbers, tensor, head, out):
    """Copy a head's rows to the address `out`, in panels."""
    length, width = numbers[at.LENGTH], _round_up(numbers[at.D_HEAD])
    if width > numbers[at.D_HEAD] or _round_up(length) > length:
        _clear(floats_at(out), _round_up(length) * width)
    for row in range(length):
        column = floats_at(out + 4 * (row // TILE * TILE * width + row % TILE))
        _read_row(numbers, tensor, head, row, column, TILE, np.float32(1))


@compiled
def _write(numbers, tensor, head, first, rows, factor):
    """Write the tile of rows at the address `rows`, multiplied by `factor`, to a head's rows from `first`."""
    width = _round_up(numbers[at.D_HEAD])
    for i in range(min(TILE, numbers[at.LENGTH] - first)):
        address, values = _row_address(numbers, tensor, head, first + i), floats_at(rows + 4 * i * width)
        if numbers[at.DTYPE] == at.BFLOAT16:
            halves = uint16s_at(address)
            for k in range(numbers[at.D_HEAD]):
                bits = np.float32(factor * values[k]).view(np.uint32)  # to nearest, ties to even
                bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
                halves[k] = np.uint16(bits >> np.uint32(16))
        else:
            floats = floats_at(address)
            for k in range(numbers[at.D_HEAD]):
                floats[k] = factor * values[k]


@compiled
def _mask(S_i, start, end, first, last):
    """Set the scores of the keys `start` to `end` to -inf, except for those from `first` to `last`."""
    for j in range(min(first, end) - start):
        S_i[j] = np.float32(-np.inf)
    for j in range(last + 1 - start, end - start):
        S_i[j] = np.float32(-np.inf)


@_fast
def _exp_and_sum(S_i, count, m):
    """Replace the scores by exp(S - m), and return their sum."""
    total = np.float32(0)
    # In all these loops, the count is a multiple of 16, and this tells the compiler.
    for j in range(count // TILE * TILE):
        S_i[j] = _exp(S_i[j] - m)
        total += S_i[j]
    return total


@_fast
def _exp_and_derivative(P_i, dS_i, count, L, D):
    """S becomes P = exp(S - L), and dP becomes dS = P (dP - D)."""
    for j in range(count // TILE * TILE):
        P_i[j] = _exp(P_i[j] - L)
        dS_i[j] = P_i[j] * (dS_i[j] - D)


@_fast
def _dot(a, b, count):
    total = np.float32(0)
    for k in range(count // TILE * TILE):
        total += a[k] * b[k]
    return total


@compiled
def _scale_row(numbers, count, factor):
    for k in range(count // TILE * TILE):
        numbers[k] *= factor


@compiled
def _clear(numbers, count):
    for k in range(count):
        numbers[k] = np.float32(0)


@compiled
def _exp(x):
    return np.float32(0) if x < np.float32(-87) else exp(x)
