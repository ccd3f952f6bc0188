"""FlashAttention-2, forward and backward (Dao 2023, arXiv 2307.08691, algorithms 1 and 2), and the operator of it.

softmax(Q Kᵀ / sqrt(d)) V without the (T, T) scores: a tile of queries meets the keys tile by tile, and what was summed
so far is scaled down whenever a later tile has a larger maximum. Only the output O and each row's log-sum-exp L are
kept for the backward pass, which computes the tiles of P = exp(S - L) again. The tiles here are PyTorch's tensors; on
CUDA the same algorithms run as the kernels of flash_kernels.py.

The names are the paper's. Shapes: B batch, H heads, T sequence, d d_head, r and c the rows of a tile of queries and of
keys; document_starts is (B, T).
"""

import math
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lm.errors import UserError

_TILE = 64  # rows


def flash_attention(q: Tensor, k: Tensor, v: Tensor, document_starts: Tensor | None = None) -> Tensor:
    """Causal attention: position t sees the positions s with document_starts[t] <= s <= t.

    Args:
        q, k, v: (..., H, T, d), of any floating-point types: they are converted to the type of `v`.
        document_starts: (..., T), int64, the index at which the document of each position begins, never decreasing;
            without it, all positions are of one document.

    Returns:
        (..., H, T, d) in the type of `v`. Whatever the type, sums are kept in float32 at least.

    Example: the second token sees both values, and as much of each where its scores are equal.
        >>> q, k, v = torch.zeros(1, 1, 2, 1), torch.ones(1, 1, 2, 1), torch.tensor([[[[1.0], [3.0]]]])
        >>> flash_attention(q, k, v).flatten()
        tensor([1., 2.])
        >>> flash_attention(q, k, v, document_starts=torch.tensor([[0, 1]])).flatten()
        tensor([1., 3.])
    """
    heads, (length, d) = q.shape[:-2], q.shape[-2:]
    Q, K, V = (x.to(v.dtype).reshape(-1, heads[-1], length, d) for x in (q, k, v))
    Q, K, V = (x if x.stride(-1) == 1 else x.contiguous() for x in (Q, K, V))  # the kernels read whole rows
    if document_starts is not None:
        document_starts = document_starts.reshape(-1, length).contiguous()
    O, _ = _forward(Q, K, V, document_starts)
    return O.reshape(*heads, length, d)


def tiled_forward(Q: Tensor, K: Tensor, V: Tensor, document_starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Algorithm 1: Q, K, V (B, H, T, d) -> O (B, H, T, d) and L (B, H, T), L in float32 at least."""
    dtype = torch.promote_types(Q.dtype, torch.float32)
    O, L = torch.empty_like(Q), Q.new_empty(Q.shape[:-1], dtype=dtype)
    for rows, tiles in _by_queries(Q.shape[-2], document_starts):
        Q_i = Q[..., rows, :].to(dtype)  # (B, H, r, d)
        O_i = torch.zeros_like(Q_i)
        l_i = torch.zeros_like(L[..., rows])  # (B, H, r)
        # Finite: a row that has no key in its first tiles would subtract infinity from infinity.
        m_i = torch.full_like(l_i, torch.finfo(dtype).min)
        for columns in tiles:
            K_j, V_j = K[..., columns, :].to(dtype), V[..., columns, :].to(dtype)  # (B, H, c, d)
            S = _scores(Q_i, K_j, rows, columns, document_starts)  # (B, H, r, c)
            m_new = torch.maximum(m_i, S.amax(-1))
            P = torch.exp(S - m_new.unsqueeze(-1))
            shrink = torch.exp(m_i - m_new)
            l_i = shrink * l_i + P.sum(-1)
            O_i = shrink.unsqueeze(-1) * O_i + P @ V_j
            m_i = m_new
        O[..., rows, :] = O_i / l_i.unsqueeze(-1)
        L[..., rows] = m_i + torch.log(l_i)
    return O, L


def tiled_backward(
    dO: Tensor, Q: Tensor, K: Tensor, V: Tensor, O: Tensor, L: Tensor, document_starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm 2, queries outside as in the forward pass: the gradients dQ, dK, dV (B, H, T, d), of that of O."""
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
    """Each tile of queries, with the tiles of keys of which at least one is seen: none of the future, nor of documents
    that have ended in every sequence of the batch."""
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
        from lm.model.fused import flash_kernels  # not above: only PyTorch for CUDA brings Triton with it
    except ImportError as error:
        raise UserError(f"runtime.attention_backend: on a GPU, flash needs Triton ({error}); use sdpa") from error
    return flash_kernels


# An operator of PyTorch's own kind, rather than an autograd.Function: torch.compile then leaves it whole in its graph.
@torch.library.custom_op("lm::flash_attention", mutates_args=())
def _forward(Q: Tensor, K: Tensor, V: Tensor, document_starts: Tensor | None) -> tuple[Tensor, Tensor]:
    if Q.is_cuda:
        with torch.cuda.device(Q.device):
            return _kernels().forward(Q, K, V, document_starts)
    with torch.autocast(Q.device.type, enabled=False):  # which would round the tiles
        return tiled_forward(Q, K, V, document_starts)


@torch.library.custom_op("lm::flash_attention_backward", mutates_args=())
def _backward(
    dO: Tensor, Q: Tensor, K: Tensor, V: Tensor, O: Tensor, L: Tensor, document_starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    if Q.is_cuda:
        with torch.cuda.device(Q.device):
            return _kernels().backward(dO, Q, K, V, O, L, document_starts)
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
