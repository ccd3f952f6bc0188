"""Multi-head causal self-attention.

Shapes: ... any leading dimensions, B batch, T sequence, S sequence of the keys, D d_model, H heads, G key/value heads,
K d_head.
"""

import math
import platform

import torch
from torch import Tensor, nn

from lm.model.cache import LayerCache
from lm.model.config import AttentionBackend
from lm.model.fused.flash_attention import flash_attention
from lm.model.fused.flash_cpu import run as flash_cpu
from lm.model.linear import Linear
from lm.model.norms import RMSNorm
from lm.model.positions import RotaryEmbedding


def softmax(x: Tensor, dim: int) -> Tensor:
    """exp(x) / sum(exp(x)) along `dim`; subtracting the maximum first prevents overflow and changes nothing else."""
    exp = (x - x.amax(dim, keepdim=True)).exp()
    return exp / exp.sum(dim, keepdim=True)


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(Q Kᵀ / sqrt(K)) V (Vaswani et al. 2017, equation 1).

    `q` (..., T, K), `k` and `v` (..., S, K), `mask` (..., T, S), true where a query may see a key -> (..., T, K).
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (..., T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return softmax(scores.float(), dim=-1).to(v.dtype) @ v


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, backend: AttentionBackend, document_starts: Tensor | None = None
) -> Tensor:
    """Attention where position t sees positions 0 to t, or only those of its document with `document_starts` (B, T).

    Queries are (B, H, T, K), keys and values (B, G, T, K): with G < H, groups of heads share them. The backends compute
    the same: `reference` is the equation above; `sdpa` is PyTorch's kernel (FlashAttention on CUDA, unless there are
    documents); `flash` is `flash_attention`; and `auto` is the fastest for the device.
    """
    if backend == "auto":
        backend = fastest_backend(q.device.type)
    if k.shape[-3] < q.shape[-3]:
        group = q.shape[-3] // k.shape[-3]
        k, v = k.repeat_interleave(group, dim=-3), v.repeat_interleave(group, dim=-3)
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


@torch.compiler.assume_constant_result
def fastest_backend(device: str) -> AttentionBackend:
    """What `auto` means: on an x86 CPU, `flash` if its kernels can be compiled; otherwise `sdpa`."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")  # on others, the kernels have not been measured
    return "flash" if device == "cpu" and is_x86 and flash_cpu.can_run() else "sdpa"


def attention_to_cache(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention of one new token per row to the columns of a cache: q (B, H, 1, K), k and v (B, G, S, K) -> q's shape.

    The query heads that share keys and values are treated like positions, so that keys and values are not repeated.
    This is the equation itself: for one position, PyTorch's kernel takes up to four times as long on a CPU.
    """
    grouped = q.reshape(len(q), k.shape[1], -1, q.shape[-1])  # (B, G, H/G, K)
    return scaled_dot_product_attention(grouped, k, v, mask).reshape(q.shape)


class MultiHeadSelfAttention(nn.Module):
    """Causal self-attention with `num_heads` heads, groups of which share the `num_kv_heads` keys and values.

    num_kv_heads = num_heads is multi-head attention (Vaswani et al. 2017, section 3.2.2); fewer is grouped-query
    attention (Ainslie et al. 2023). `rope` rotates queries and keys; without it, the layer has no information about
    positions. `qk_norm` first normalizes each query and key (Henry et al. 2020; Dehghani et al. 2023), so that no
    attention logit can grow without bound.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        rope: RotaryEmbedding | None = None,
        qk_norm: bool = False,
        backend: AttentionBackend = "auto",
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
        self,
        x: Tensor,
        token_positions: Tensor | None = None,
        document_starts: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(..., T, D) -> (..., T, D); arguments as for `TransformerLM.forward`."""
        # Three multiplications: a single one with concatenated weights was no faster on a CPU, and it keeps two copies
        # of q and k for the backward pass.
        q = self.q_proj(x).unflatten(-1, (self.num_heads, self.d_head)).transpose(-2, -3)  # (..., H, T, K)
        k = self.k_proj(x).unflatten(-1, (self.num_kv_heads, self.d_head)).transpose(-2, -3)  # (..., G, T, K)
        v = self.v_proj(x).unflatten(-1, (self.num_kv_heads, self.d_head)).transpose(-2, -3)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            if token_positions is not None:
                token_positions = token_positions.unsqueeze(-2)  # (..., 1, T): the same for every head
            q, k = self.rope(q, token_positions), self.rope(k, token_positions)
        mask = None
        if cache is not None:
            k, v, mask = cache.update(k, v)
        if mask is None:
            heads = causal_attention(q, k, v, self.backend, document_starts)  # (..., H, T, K)
        else:
            heads = attention_to_cache(q, k, v, mask)
        return self.output_proj(heads.transpose(-2, -3).flatten(-2))

    @staticmethod
    def num_parameters(d_model: int, num_heads: int, num_kv_heads: int) -> int:
        """Weights of the four projections; the norms of queries and keys report their own."""
        d_kv = num_kv_heads * (d_model // num_heads)
        return 2 * d_model * d_model + 2 * d_model * d_kv

    @staticmethod
    def flops_per_token(d_model: int, num_heads: int, num_kv_heads: int, sequence_length: int) -> int:
        """FLOPs of the forward pass in matrix products: the projections, the scores and the weighted values.

        Masked positions are included, as is usual when MFU is reported.
        """
        projections = 2 * MultiHeadSelfAttention.num_parameters(d_model, num_heads, num_kv_heads)
        return projections + 4 * sequence_length * d_model
