"""Multi-head causal self-attention with rotary positions.

Shapes: ... any leading dimensions, B batch, T sequence, S sequence of the keys, D d_model, H heads, K d_head.
"""

import math

import torch
from torch import Tensor, nn

from lm.model.config import AttentionBackend
from lm.model.fused.flash_attention import flash_attention
from lm.model.layers import Linear, RMSNorm


class RotaryEmbedding(nn.Module):
    """Turns each pair of neighbours (x[2i], x[2i+1]) by the angle position · theta^(-2i/K) (Su et al. 2021).

    The dot product of two turned vectors then depends on their positions only through the difference. As in their
    equation 34, y = x cos + x' sin, in which x' is x with its neighbours exchanged, and the first of each two negated.
    """

    def __init__(self, theta: float, d_head: int, context_length: int) -> None:
        super().__init__()
        # In this order of operations other programs round to the same numbers.
        frequencies = 1 / theta ** (torch.arange(0, d_head, 2, dtype=torch.float32) / d_head)  # (K/2,)
        angles = torch.outer(torch.arange(context_length, dtype=torch.float32), frequencies)  # (T, K/2)
        # Not persistent: they follow from the configuration, and a checkpoint holds only what was learned.
        self.register_buffer("cos", angles.cos().repeat_interleave(2, dim=-1), persistent=False)  # (T, K)
        self.register_buffer("sin", torch.stack((-angles.sin(), angles.sin()), -1).flatten(-2), persistent=False)

    def forward(self, x: Tensor, token_positions: Tensor | None = None) -> Tensor:
        """`x` is (..., T, K); `token_positions` (..., T) defaults to 0, 1, ..., T - 1."""
        if token_positions is None:
            cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]  # (T, K)
        else:
            cos, sin = self.cos[token_positions], self.sin[token_positions]  # (..., T, K)
        exchanged = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        return torch.addcmul(x * cos.to(x.dtype), exchanged, sin.to(x.dtype))


def softmax(x: Tensor, dim: int) -> Tensor:
    """exp(x) / sum(exp(x)) along `dim`; the maximum is subtracted first, which changes nothing but overflow."""
    exp = (x - x.amax(dim, keepdim=True)).exp()
    return exp / exp.sum(dim, keepdim=True)


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(Q Kᵀ / sqrt(K)) V (Vaswani et al. 2017, eq. 1), the reference.

    `q` (..., T, K), `k` and `v` (..., S, K), `mask` (..., T, S) true where a query may see a key -> (..., T, K).
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return softmax(scores.float(), dim=-1).to(v.dtype) @ v


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, backend: AttentionBackend, document_starts: Tensor | None = None
) -> Tensor:
    """Attention in which position t sees the positions 0 to t, or `document_starts`[t] to t, (B, T).

    `reference` is the equation, which torch.compile makes fast on a CPU, `sdpa` PyTorch's kernel (FlashAttention on
    CUDA, but not with documents), `flash` the one of `flash_attention`. Queries, keys and values are (B, H, T, K).
    """
    if backend == "flash":
        return flash_attention(q, k, v, document_starts)
    if backend == "sdpa" and document_starts is None:
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    positions = torch.arange(q.shape[-2], device=q.device)
    mask = positions <= positions[:, None]  # (T, T)
    if document_starts is not None:
        mask = mask & (positions >= document_starts[:, None, :, None])  # (B, 1, T, T)
    if backend == "sdpa":
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return scaled_dot_product_attention(q, k, v, mask)


class MultiHeadSelfAttention(nn.Module):
    """Causal self-attention of `num_heads` heads; groups of them share the `num_kv_heads` keys and values.

    num_kv_heads = num_heads is the multi-head attention of Vaswani et al. 2017 (3.2.2), fewer are the grouped queries
    of Ainslie et al. 2023. `rope` turns queries and keys; without it the heads know no positions. `qk_norm` normalises
    each query and key before (Henry et al. 2020; Dehghani et al. 2023), so that no logit can grow without bound.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        rope: RotaryEmbedding | None = None,
        qk_norm: bool = False,
        backend: AttentionBackend = "sdpa",
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.d_head = d_model // num_heads
        self.rope = rope
        self.backend = backend
        self.q_proj = Linear(d_model, num_heads * self.d_head)
        self.k_proj = Linear(d_model, self.num_kv_heads * self.d_head)
        self.v_proj = Linear(d_model, self.num_kv_heads * self.d_head)
        self.output_proj = Linear(num_heads * self.d_head, d_model)
        self.q_norm = RMSNorm(self.d_head) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.d_head) if qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, token_positions: Tensor | None = None, document_starts: Tensor | None = None
    ) -> Tensor:
        """(..., T, D) -> (..., T, D)."""
        # Three products: one over the joined weights was no faster on a CPU, and keeps q and k twice for the backward.
        q = self.q_proj(x).unflatten(-1, (self.num_heads, self.d_head)).transpose(-2, -3)  # (..., H, T, K)
        k = self.k_proj(x).unflatten(-1, (self.num_kv_heads, self.d_head)).transpose(-2, -3)
        v = self.v_proj(x).unflatten(-1, (self.num_kv_heads, self.d_head)).transpose(-2, -3)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            if token_positions is not None:
                token_positions = token_positions.unsqueeze(-2)  # (..., 1, T): the same for every head
            q, k = self.rope(q, token_positions), self.rope(k, token_positions)
        if self.num_kv_heads < self.num_heads:
            group = self.num_heads // self.num_kv_heads
            k, v = k.repeat_interleave(group, dim=-3), v.repeat_interleave(group, dim=-3)
        heads = causal_attention(q, k, v, self.backend, document_starts)  # (..., H, T, K)
        return self.output_proj(heads.transpose(-2, -3).flatten(-2))
