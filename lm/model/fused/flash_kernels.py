"""FlashAttention-2 as Triton kernels (Dao 2023, arXiv 2307.08691, algorithms 1 and 2), called by flash_attention.py.

Each program is the only one to write its rows, so nothing is accumulated across programs and every run gives the same
bits. In `flash_forward` a program computes O and L for one tile of queries, in `flash_query_gradient` D and dQ for one
tile of queries, in `flash_key_gradients` dK and dV for one tile of keys. Tiles in which no query sees a key are never
visited. Tiles on the diagonal are visited in a separate loop, because only they need the causal mask.

Beyond the inputs and outputs the kernels store L, D and the ends of documents: O(T) memory. Sums and softmax are in
float32. Exponentials use powers of 2, which the hardware computes: exp(x) = 2^(x log2(e)). A float32 product is
computed as three TF32 products ("tf32x3"), with an error close to float32's own: "tf32" would keep 10 bits, and "ieee"
would not use the tensor cores. This requires a GPU of compute capability 8.0 or higher.

Shapes: B batch, H heads, T sequence, d d_head, W the smallest power of two that is at least d, r and c the number of
rows in a tile of queries and of keys. `head` is an index over all B * H heads; its matrix is (T, d).
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lm.errors import UserError

_LOG2_E = tl.constexpr(math.log2(math.e))
_PRECISION = tl.constexpr("tf32x3")


def _launch(r: int, c: int, num_warps: int, num_stages: int) -> dict[str, int]:
    return {"r": r, "c": c, "num_warps": num_warps, "num_stages": num_stages}


# By dtype and W (64 stands for all smaller widths too). Compiled for compute capability 8.0 and 9.0, no kernel needs
# more than 99 KB of shared memory, which all later GPUs have, and at most about 100 bytes are spilled from registers.
# The tile that a program writes is as tall as this allows: the taller it is, the less often the other side is loaded.
_FORWARD = {
    (torch.bfloat16, 64): _launch(r=128, c=64, num_warps=4, num_stages=3),
    (torch.bfloat16, 128): _launch(r=128, c=64, num_warps=8, num_stages=2),
    (torch.float32, 64): _launch(r=32, c=32, num_warps=4, num_stages=2),
    (torch.float32, 128): _launch(r=32, c=32, num_warps=8, num_stages=2),
}
_QUERY_GRADIENT = {
    (torch.bfloat16, 64): _launch(r=128, c=64, num_warps=8, num_stages=3),
    (torch.bfloat16, 128): _launch(r=128, c=32, num_warps=8, num_stages=2),
    (torch.float32, 64): _launch(r=32, c=32, num_warps=4, num_stages=2),
    (torch.float32, 128): _launch(r=32, c=16, num_warps=8, num_stages=2),
}
_KEY_GRADIENTS = {
    (torch.bfloat16, 64): _launch(r=64, c=128, num_warps=8, num_stages=3),
    (torch.bfloat16, 128): _launch(r=32, c=128, num_warps=8, num_stages=2),
    (torch.float32, 64): _launch(r=32, c=32, num_warps=4, num_stages=2),
    (torch.float32, 128): _launch(r=16, c=32, num_warps=8, num_stages=2),
}


def forward(Q: Tensor, K: Tensor, V: Tensor, document_starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Q, K, V (B, H, T, d) in bfloat16 or float32 -> O (B, H, T, d) and L (B, H, T) in float32.

    The last dimension of Q, K and V must have stride 1, and `document_starts` must be contiguous.
    """
    (B, H, T, d), W = Q.shape, _width(Q)
    O, L = torch.empty_like(Q), Q.new_empty(B, H, T, dtype=torch.float32)
    tiles = _tiles(_FORWARD, Q)
    flash_forward[(B * H * triton.cdiv(T, tiles["r"]),)](
        *(Q, K, V, O, L, document_starts),
        *(x.stride()[:3] for x in (Q, K, V, O)),
        *(H, T, 1 / math.sqrt(d), d, W),
        **tiles,
    )
    return O, L


def backward(
    dO: Tensor, Q: Tensor, K: Tensor, V: Tensor, O: Tensor, L: Tensor, document_starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """dO -> the gradients dQ, dK, dV (B, H, T, d)."""
    (B, H, T, d), W = Q.shape, _width(Q)
    dO = dO if dO.stride(-1) == 1 else dO.contiguous()  # for example the expanded gradient of a sum
    dQ, dK, dV, D = torch.empty_like(Q), torch.empty_like(K), torch.empty_like(V), torch.empty_like(L)
    numbers = (H, T, 1 / math.sqrt(d), d, W)

    tiles = _tiles(_QUERY_GRADIENT, Q)
    flash_query_gradient[(B * H * triton.cdiv(T, tiles["r"]),)](
        *(dO, Q, K, V, O, L, D, dQ, document_starts),
        *(x.stride()[:3] for x in (dO, Q, K, V, O, dQ)),
        *numbers,
        **tiles,
    )

    tiles = _tiles(_KEY_GRADIENTS, Q)
    num_tiles = triton.cdiv(T, tiles["c"])
    ends = None
    if document_starts is not None:
        # No query beyond the end of the last key's document sees any key of a tile.
        last_keys = torch.arange(1, num_tiles + 1, device=Q.device) * tiles["c"] - 1
        ends = torch.searchsorted(document_starts, last_keys.repeat(B, 1), right=True)  # (B, num_tiles)
    flash_key_gradients[(B * H * num_tiles,)](
        *(dO, Q, K, V, L, D, dK, dV, document_starts, ends),
        *(x.stride()[:3] for x in (dO, Q, K, V, dK, dV)),
        *numbers,
        **tiles,
    )
    return dQ, dK, dV


def _width(Q: Tensor) -> int:
    return max(16, triton.next_power_of_2(Q.shape[-1]))  # the smallest width that tensor cores multiply


def _tiles(table: dict[tuple[torch.dtype, int], dict[str, int]], Q: Tensor) -> dict[str, int]:
    try:
        return table[Q.dtype, max(_width(Q), 64)]
    except KeyError:
        raise UserError(
            "runtime.attention_backend: on a GPU, flash supports d_head up to 128 in float32 or bfloat16, "
            f"got {Q.shape[-1]} in {str(Q.dtype).removeprefix('torch.')}; set it to sdpa"
        ) from None


@triton.jit
def flash_forward(
    Q, K, V, O, L, document_starts, Q_strides, K_strides, V_strides, O_strides,
    H, T, scale, d: tl.constexpr, W: tl.constexpr, r: tl.constexpr, c: tl.constexpr,
):  # fmt: skip
    """Algorithm 1 for one tile of queries of one head."""
    tiles = tl.cdiv(T, r)
    head = tl.program_id(0) // tiles
    first_row = (tiles - 1 - tl.program_id(0) % tiles) * r  # the last rows see the most keys and start first
    rows = first_row + tl.arange(0, r)
    starts, first_key = None, 0
    if document_starts is not None:
        starts = _load_rows(document_starts, head // H, first_row, T, r)[:, None]
        first_key = tl.load(document_starts + tl.cast(head // H, tl.int64) * T + first_row).to(tl.int32) // c * c

    Q_i = _load(_matrix(Q, Q_strides, head, H), Q_strides, first_row, T, d, W, r)  # (r, W)
    K, V = _matrix(K, K_strides, head, H), _matrix(V, V_strides, head, H)
    O_i = tl.zeros([r, W], tl.float32)
    l_i = tl.zeros([r], tl.float32)
    m_i = tl.full([r], -1e30, tl.float32)  # finite: no infinity minus infinity in a row without keys
    for on_diagonal in tl.static_range(2):
        begin, end = first_key, first_row // c * c
        if on_diagonal:
            begin, end = first_row // c * c, tl.minimum(first_row + r, T)
        for first_column in range(begin, end, c):
            columns = first_column + tl.arange(0, c)
            K_j = _load(K, K_strides, first_column, T, d, W, c)  # (c, W)
            S = tl.dot(Q_i, tl.trans(K_j), input_precision=_PRECISION)  # (r, c), before scaling
            S = _mask(S, rows[:, None], columns[None, :], starts, on_diagonal)
            m_new = tl.maximum(m_i, tl.max(S, 1) * (scale * _LOG2_E))
            P = tl.exp2(S * (scale * _LOG2_E) - m_new[:, None])
            scale_down = tl.exp2(m_i - m_new)
            l_i = scale_down * l_i + tl.sum(P, 1)
            V_j = _load(V, V_strides, first_column, T, d, W, c)
            O_i = tl.dot(P.to(V_j.dtype), V_j, O_i * scale_down[:, None], input_precision=_PRECISION)
            m_i = m_new
    _store(_matrix(O, O_strides, head, H), O_strides, first_row, T, d, W, r, O_i / l_i[:, None])
    _store_rows(L, head, first_row, T, r, (m_i + tl.log2(l_i)) / _LOG2_E)


@triton.jit
def flash_query_gradient(
    dO, Q, K, V, O, L, D, dQ, document_starts, dO_strides, Q_strides, K_strides, V_strides, O_strides, dQ_strides,
    H, T, scale, d: tl.constexpr, W: tl.constexpr, r: tl.constexpr, c: tl.constexpr,
):  # fmt: skip
    """D and dQ of algorithm 2 for one tile of queries of one head."""
    tiles = tl.cdiv(T, r)
    head = tl.program_id(0) // tiles
    first_row = (tiles - 1 - tl.program_id(0) % tiles) * r
    rows = first_row + tl.arange(0, r)
    starts, first_key = None, 0
    if document_starts is not None:
        starts = _load_rows(document_starts, head // H, first_row, T, r)[:, None]
        first_key = tl.load(document_starts + tl.cast(head // H, tl.int64) * T + first_row).to(tl.int32) // c * c

    dO_i = _load(_matrix(dO, dO_strides, head, H), dO_strides, first_row, T, d, W, r)
    O_i = _load(_matrix(O, O_strides, head, H), O_strides, first_row, T, d, W, r)
    D_i = tl.sum(dO_i.to(tl.float32) * O_i.to(tl.float32), 1)
    _store_rows(D, head, first_row, T, r, D_i)
    L_i = _load_rows(L, head, first_row, T, r) * _LOG2_E
    Q_i = _load(_matrix(Q, Q_strides, head, H), Q_strides, first_row, T, d, W, r)
    K, V = _matrix(K, K_strides, head, H), _matrix(V, V_strides, head, H)
    dQ_i = tl.zeros([r, W], tl.float32)
    for on_diagonal in tl.static_range(2):
        begin, end = first_key, first_row // c * c
        if on_diagonal:
            begin, end = first_row // c * c, tl.minimum(first_row + r, T)
        for first_column in range(begin, end, c):
            columns = first_column + tl.arange(0, c)
            K_j = _load(K, K_strides, first_column, T, d, W, c)
            V_j = _load(V, V_strides, first_column, T, d, W, c)
            S = tl.dot(Q_i, tl.trans(K_j), input_precision=_PRECISION)
            S = _mask(S, rows[:, None], columns[None, :], starts, on_diagonal)
            P = tl.exp2(S * (scale * _LOG2_E) - L_i[:, None])
            dP = tl.dot(dO_i, tl.trans(V_j), input_precision=_PRECISION)
            dS = P * (dP - D_i[:, None])
            dQ_i = tl.dot(dS.to(K_j.dtype), K_j, dQ_i, input_precision=_PRECISION)
    _store(_matrix(dQ, dQ_strides, head, H), dQ_strides, first_row, T, d, W, r, scale * dQ_i)


@triton.jit
def flash_key_gradients(
    dO, Q, K, V, L, D, dK, dV, document_starts, ends, dO_strides, Q_strides, K_strides, V_strides, dK_strides,
    dV_strides, H, T, scale, d: tl.constexpr, W: tl.constexpr, r: tl.constexpr, c: tl.constexpr,
):  # fmt: skip
    """dK and dV of algorithm 2 for one tile of keys of one head; all tiles are transposed, (c, r)."""
    tiles = tl.cdiv(T, c)
    head = tl.program_id(0) // tiles
    first_column = tl.program_id(0) % tiles * c  # the first keys are seen by the most rows and start first
    columns = first_column + tl.arange(0, c)
    end_of_rows = T
    if document_starts is not None:
        end_of_rows = tl.load(ends + head // H * tiles + tl.program_id(0) % tiles).to(tl.int32)

    K_j = _load(_matrix(K, K_strides, head, H), K_strides, first_column, T, d, W, c)
    V_j = _load(_matrix(V, V_strides, head, H), V_strides, first_column, T, d, W, c)
    Q, dO = _matrix(Q, Q_strides, head, H), _matrix(dO, dO_strides, head, H)
    dK_j = tl.zeros([c, W], tl.float32)
    dV_j = tl.zeros([c, W], tl.float32)
    for off_diagonal in tl.static_range(2):
        begin, end = first_column // r * r, tl.minimum(tl.cdiv(first_column + c, r) * r, end_of_rows)
        if off_diagonal:
            begin, end = tl.cdiv(first_column + c, r) * r, end_of_rows
        for first_row in range(begin, end, r):
            # Rows from T on are loaded as zeros and contribute nothing.
            rows = first_row + tl.arange(0, r)
            Q_i = _load(Q, Q_strides, first_row, T, d, W, r)
            dO_i = _load(dO, dO_strides, first_row, T, d, W, r)
            L_i = _load_rows(L, head, first_row, T, r) * _LOG2_E
            D_i = _load_rows(D, head, first_row, T, r)
            starts = None
            if document_starts is not None:
                starts = _load_rows(document_starts, head // H, first_row, T, r)[None, :]
            S = tl.dot(K_j, tl.trans(Q_i), input_precision=_PRECISION)
            S = _mask(S, rows[None, :], columns[:, None], starts, not off_diagonal)
            P = tl.exp2(S * (scale * _LOG2_E) - L_i[None, :])
            dV_j = tl.dot(P.to(dO_i.dtype), dO_i, dV_j, input_precision=_PRECISION)
            dP = tl.dot(V_j, tl.trans(dO_i), input_precision=_PRECISION)
            dS = P * (dP - D_i[None, :])
            dK_j = tl.dot(dS.to(Q_i.dtype), Q_i, dK_j, input_precision=_PRECISION)
    _store(_matrix(dK, dK_strides, head, H), dK_strides, first_column, T, d, W, c, scale * dK_j)
    _store(_matrix(dV, dV_strides, head, H), dV_strides, first_column, T, d, W, c, dV_j)


@triton.jit
def _mask(S, rows, columns, starts, causal: tl.constexpr):
    """S with -inf where the query of a row may not see the key of a column."""
    if causal:
        S = tl.where(columns <= rows, S, float("-inf"))
    if starts is not None:
        S = tl.where(starts <= columns, S, float("-inf"))
    return S


@triton.jit
def _matrix(pointer, strides, head, H):
    """A pointer to the matrix (T, d) of a head. Offsets are int64, since they may exceed 2^31."""
    return pointer + tl.cast(head // H, tl.int64) * strides[0] + tl.cast(head % H, tl.int64) * strides[1]


@triton.jit
def _pointers(matrix, strides, first, T, d: tl.constexpr, W: tl.constexpr, count: tl.constexpr):
    """Pointers to the rows first, ..., first + count - 1 of a matrix (T, d), and a mask of those that exist."""
    rows, columns = tl.arange(0, count)[:, None], tl.arange(0, W)[None, :]
    pointers = matrix + tl.cast(first, tl.int64) * strides[2] + rows * strides[2] + columns
    return pointers, (first + rows < T) & (columns < d)


@triton.jit
def _load(matrix, strides, first, T, d: tl.constexpr, W: tl.constexpr, count: tl.constexpr):
    """Rows of a matrix (T, d), padded with zeros to (count, W)."""
    pointers, exists = _pointers(matrix, strides, first, T, d, W, count)
    return tl.load(pointers, exists, other=0.0)


@triton.jit
def _store(matrix, strides, first, T, d: tl.constexpr, W: tl.constexpr, count: tl.constexpr, values):
    pointers, exists = _pointers(matrix, strides, first, T, d, W, count)
    tl.store(pointers, values.to(matrix.dtype.element_ty), exists)


@triton.jit
def _load_rows(vectors, index, first, T, count: tl.constexpr):
    """Elements first, ..., first + count - 1 of one row of `vectors` (..., T), with zeros from T on."""
    rows = first + tl.arange(0, count)
    return tl.load(vectors + tl.cast(index, tl.int64) * T + rows, rows < T, other=0)


@triton.jit
def _store_rows(vectors, index, first, T, count: tl.constexpr, values):
    rows = first + tl.arange(0, count)
    tl.store(vectors + tl.cast(index, tl.int64) * T + rows, values, rows < T)
