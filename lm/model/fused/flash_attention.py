"""FlashAttention-2, forward and backward (Dao 2023, arXiv 2307.08691, algorithms 1 and 2), as a PyTorch operator.

It computes softmax(Q Kᵀ / sqrt(d)) V without storing the (T, T) scores. Each tile of queries visits the keys tile by
tile; when a later tile contains a larger score, the sums so far are scaled down. For the backward pass only the output
O and the log-sum-exp L of each row are kept, and the tiles of P = exp(S - L) are computed again. The tiles in this
module are PyTorch tensors. On CUDA, the Triton kernels in flash_kernels.py run the same algorithms, and on a CPU, the
kernels in flash_cpu/, which numba compiles.

The names are the paper's. Shapes: B batch, H heads, T sequence, d d_head, r and c the number of rows in a tile of
queries and of keys; document_starts is (B, T).
"""

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lm.errors import UserError
from lm.model.fused.flash_cpu import run as flash_cpu

_TILE = 64  # rows


def flash_attention(q: Tensor, k: Tensor, v: Tensor, document_starts: Tensor | None = None) -> Tensor:
    """Causal attention: position t sees the positions s with document_starts[t] <= s <= t.

    Args:
        q, k, v: (..., H, T, d), of any floating-point dtypes; they are converted to the dtype of `v`.
        document_starts: (..., T), int64, the index at which the document of each position begins, never decreasing.
            Without it, all positions belong to one document.

    Returns:
        (..., H, T, d) in the dtype of `v`. Sums are computed at least in float32, whatever the dtype.

    Example: the second token sees both values, with equal weights since its scores are equal.
        >>> q, k, v = torch.zeros(1, 1, 2, 1), torch.ones(1, 1, 2, 1), torch.tensor([[[[1.0], [3.0]]]])
        >>> flash_attention(q, k, v).flatten()
        tensor([1., 2.])
        >>> flash_attention(q, k, v, document_starts=torch.tensor([[0, 1]])).flatten()
        tensor([1., 3.])
    """
    heads, (length, d) = q.shape[:-2], q.shape[-2:]
    Q, K, V = (x.to(v.dtype).reshape(math.prod(heads[:-1]), heads[-1], length, d) for x in (q, k, v))
    Q, K, V = (x if x.stride(-1) == 1 else x.contiguous() for x in (Q, K, V))  # the kernels read contiguous rows
    if document_starts is not None:
        document_starts = document_starts.long().expand(*heads[:-1], length).reshape(-1, length).contiguous()
    O, _ = _forward(Q, K, V, document_starts)
    return O.reshape(*heads, length, d)


def tiled_forward(Q: Tensor, K: Tensor, V: Tensor, document_starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Algorithm 1: Q, K, V (B, H, T, d) -> O (B, H, T, d) and L (B, H, T), L at least in float32."""
    dtype = torch.promote_types(Q.dtype, torch.float32)
    O, L = torch.empty_like(Q), Q.new_empty(Q.shape[:-1], dtype=dtype)
    for rows, tiles in _by_queries(Q.shape[-2], document_starts):
        Q_i = Q[..., rows, :].to(dtype)  # (B, H, r, d)
        O_i = torch.zeros_like(Q_i)
        l_i = torch.zeros_like(L[..., rows])  # (B, H, r)
        # Finite, because a row that sees no key in its first tiles would otherwise subtract infinity from infinity.
        m_i = torch.full_like(l_i, torch.finfo(dtype).min)
        for columns in tiles:
            K_j, V_j = K[..., columns, :].to(dtype), V[..., columns, :].to(dtype)  # (B, H, c, d)
            S = _scores(Q_i, K_j, rows, columns, document_starts)  # (B, H, r, c)
            m_new = torch.maximum(m_i, S.amax(-1))
            P = torch.exp(S - m_new.unsqueeze(-1))
            scale_down = torch.exp(m_i - m_new)
            l_i = scale_down * l_i + P.sum(-1)
            O_i = scale_down.unsqueeze(-1) * O_i + P @ V_j
            m_i = m_new
        O[..., rows, :] = O_i / l_i.unsqueeze(-1)
        L[..., rows] = m_i + torch.log(l_i)
    return O, L


def tiled_backward(
    dO: Tensor, Q: Tensor, K: Tensor, V: Tensor, O: Tensor, L: Tensor, document_starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm 2, with the outer loop over queries as in the forward pass: dO -> dQ, dK, dV (B, H, T, d)."""
    dtype, scale = L.dtype, 1 / math.sqrt(Q.shape[-1])
    dQ, dK, dV = (torch.zeros_like(x, dtype=dtype) for x in (Q, K, V))
    D = (dO.to(dtype) * O.to(dtype)).sum(-1, keepdim=True)  # (B, H, T, 1)
    for rows, tiles in _by_queries(Q.shape[-2], document_starts):
        Q_i, dO_i = Q[..., rows, :].to(dtype), dO[..., rows, :].to(dtype)
        for columns in tiles:
            K_j, V_j = K[..., columns, :].to(dtype), V[..., columns, :].to(dtype)
            P = torch.exp(_scores(Q_i, K_j, rows, columns, document_starts) - L[..., rows, None])  # (B, H, r, c)
            dV[..., columns, :] += P.mT @ dO_i
            dP = dO_i @ V_j.mT
            dS = P * (dP - D[..., rows, :])
            dQ[..., rows, :] += scale * dS @ K_j
            dK[..., columns, :] += scale * dS.mT @ Q_i
    return dQ.to(Q.dtype), dK.to(K.dtype), dV.to(V.dtype)


def _by_queries(length: int, document_starts: Tensor | None) -> Iterator[tuple[slice, list[slice]]]:
    """Each tile of queries with the tiles of keys that it has to visit.

    Tiles of future keys are left out, and tiles of documents that have ended in every sequence of the batch.
    """
    tiles = [slice(start, min(start + _TILE, length)) for start in range(0, length, _TILE)]
    first_keys = [0] * len(tiles) if document_starts is None else document_starts[:, ::_TILE].amin(0).tolist()
    for i, rows in enumerate(tiles):
        yield rows, tiles[first_keys[i] // _TILE : i + 1]


def _scores(Q_i: Tensor, K_j: Tensor, rows: slice, columns: slice, document_starts: Tensor | None) -> Tensor:
    """S = Q_i K_jᵀ / sqrt(d), (B, H, r, c), -inf where a query may not see a key."""
    S = Q_i @ K_j.mT / math.sqrt(Q_i.shape[-1])
    keys = torch.arange(columns.start, columns.stop, device=S.device)  # (c,)
    if columns == rows:
        S = S.masked_fill(keys > keys.unsqueeze(-1), -torch.inf)
    if document_starts is not None:
        S = S.masked_fill(keys < document_starts[:, None, rows, None], -torch.inf)
    return S


def _kernels() -> ModuleType:
    try:
        from lm.model.fused import flash_kernels  # imported here, since only PyTorch for CUDA installs Triton
    except ImportError as error:
        raise UserError(f"runtime.attention_backend: on a GPU, flash needs Triton ({error}); set it to sdpa") from error
    return flash_kernels


# A custom operator instead of an autograd.Function, so that torch.compile keeps it as one node of its graph.
@torch.library.custom_op("lm::flash_attention", mutates_args=())
def _forward(Q: Tensor, K: Tensor, V: Tensor, document_starts: Tensor | None) -> tuple[Tensor, Tensor]:
    if Q.is_cuda:
        with torch.cuda.device(Q.device):
            return _kernels().forward(Q, K, V, document_starts)
    if flash_cpu.supports(Q):
        return flash_cpu.forward(Q, K, V, document_starts)
    with torch.autocast(Q.device.type, enabled=False):  # autocast would round the tiles
        return tiled_forward(Q, K, V, document_starts)


@torch.library.custom_op("lm::flash_attention_backward", mutates_args=())
def _backward(
    dO: Tensor, Q: Tensor, K: Tensor, V: Tensor, O: Tensor, L: Tensor, document_starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    if Q.is_cuda:
        with torch.cuda.device(Q.device):
            return _kernels().backward(dO, Q, K, V, O, L, document_starts)
    if flash_cpu.supports(Q):
        return flash_cpu.backward(dO, Q, K, V, O, L, document_starts)
    with torch.autocast(Q.device.type, enabled=False):
        return tiled_backward(dO, Q, K, V, O, L, document_starts)


@_forward.register_fake
def _(Q: Tensor, K: Tensor, V: Tensor, document_starts: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(Q), Q.new_empty(Q.shape[:-1], dtype=torch.promote_types(Q.dtype, torch.float32))


@_backward.register_fake
def _(
    dO: Tensor, Q: Tensor, K: Tensor, V: Tensor, O: Tensor, L: Tensor, document_starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(Q), torch.empty_like(K), torch.empty_like(V)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, dO: Tensor, _dL: Tensor) -> tuple[Tensor | None, ...]:
    Q, K, V, document_starts, O, L = ctx.saved_tensors
    return *_backward(dO, Q, K, V, O, L, document_starts), None


_forward.register_autograd(_differentiate, setup_context=_save)
