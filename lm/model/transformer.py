"""The decoder-only Transformer: embeddings, blocks, final norm, head.

Shapes: ... any leading dimensions, T sequence, D d_model, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lm.model.attention import MultiHeadSelfAttention, RotaryEmbedding
from lm.model.config import AttentionBackend, FeedForward, ModelConfig, Norm, NormPosition
from lm.model.layers import Embedding, LayerNorm, Linear, RMSNorm, SiLU, SwiGLU

NORMS = {"rmsnorm": RMSNorm, "layernorm": LayerNorm, "none": lambda d_model: nn.Identity()}
FEED_FORWARDS = {"swiglu": SwiGLU, "silu": SiLU}


class TransformerBlock(nn.Module):
    """Attention, then the feed-forward layer, each added to the residual stream.

    `norm_position: pre` normalises what a sub-layer reads (Xiong et al. 2020), `post` the sum that it leaves
    (Vaswani et al. 2017).
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        num_kv_heads: int | None = None,
        rope: RotaryEmbedding | None = None,
        norm: Norm = "rmsnorm",
        norm_position: NormPosition = "pre",
        qk_norm: bool = False,
        ffn: FeedForward = "swiglu",
        attention_backend: AttentionBackend = "sdpa",
    ) -> None:
        super().__init__()
        self.norm_position = norm_position
        self.ln1 = NORMS[norm](d_model)
        self.attn = MultiHeadSelfAttention(d_model, num_heads, num_kv_heads, rope, qk_norm, attention_backend)
        self.ln2 = NORMS[norm](d_model)
        self.ffn = FEED_FORWARDS[ffn](d_model, d_ff)

    def forward(
        self, x: Tensor, token_positions: Tensor | None = None, document_starts: Tensor | None = None
    ) -> Tensor:
        """(..., T, D) -> (..., T, D)."""
        if self.norm_position == "pre":
            x = x + self.attn(self.ln1(x), token_positions, document_starts)
            return x + self.ffn(self.ln2(x))
        x = self.ln1(x + self.attn(x, token_positions, document_starts))
        return self.ln2(x + self.ffn(x))


class TransformerLM(nn.Module):
    """Token ids (..., T) -> logits (..., T, V) of the next token at every position.

    Example:
        >>> model = TransformerLM(config, vocab_size=1000)
        >>> model(torch.tensor([[5, 17, 3]])).shape
        torch.Size([1, 3, 1000])
    """

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        attention_backend: AttentionBackend = "sdpa",
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.checkpoint_activations = checkpoint_activations
        # A tied matrix is also the head, whose logits of a normalised vector should start at the size of 1.
        std = config.d_model**-0.5 if config.tie_embeddings else 1.0
        self.token_embeddings = Embedding(vocab_size, config.d_model, std)
        if config.position == "learned":
            # Small as in GPT-2: at first a position must not drown the token that stands there.
            self.position_embeddings = Embedding(config.context_length, config.d_model, 0.02 * std)
        rope = None
        if config.position == "rope":
            rope = RotaryEmbedding(config.rope_theta, config.d_head, config.context_length)  # one for all blocks
        self.layers = nn.ModuleList(
            TransformerBlock(
                config.d_model,
                config.num_heads,
                config.d_ff,
                config.num_kv_heads,
                rope,
                config.norm,
                config.norm_position,
                config.qk_norm,
                config.ffn,
                attention_backend,
            )
            for _ in range(config.num_layers)
        )
        # A post-norm block already ends in a norm.
        self.ln_final = NORMS[config.norm if config.norm_position == "pre" else "none"](config.d_model)
        self.lm_head = Linear(config.d_model, vocab_size)
        if config.tie_embeddings:
            self.lm_head.weight = self.token_embeddings.weight

    def forward(
        self, token_ids: Tensor, token_positions: Tensor | None = None, document_starts: Tensor | None = None
    ) -> Tensor:
        """`token_positions` (..., T) defaults to 0, 1, ..., T - 1; T is at most `context_length`.

        With `document_starts` (B, T), a position sees no other before the one where its document begins.
        """
        return self.lm_head(self.hidden(token_ids, token_positions, document_starts))

    def hidden(
        self, token_ids: Tensor, token_positions: Tensor | None = None, document_starts: Tensor | None = None
    ) -> Tensor:
        """What the head reads, (..., T, D); arguments as for `forward`.

        `checkpoint_activations` keeps only what goes into each block, and computes the rest of it again for the
        backward pass (Chen et al. 2016).
        """
        x = self.token_embeddings(token_ids)  # (..., T, D)
        if self.config.position == "learned":
            learned = self.position_embeddings.weight
            x = x + (learned[: x.shape[-2]] if token_positions is None else learned[token_positions])
        for layer in self.layers:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(
                    layer, x, token_positions, document_starts, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x = layer(x, token_positions, document_starts)
        return self.ln_final(x)
