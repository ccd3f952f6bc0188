"""The decoder-only Transformer: embeddings, blocks, final norm and head.

Shapes: ... any leading dimensions, T sequence, D d_model, V vocabulary.
"""

from typing import assert_never

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lm.model.attention import MultiHeadSelfAttention
from lm.model.cache import CacheView, LayerCache
from lm.model.canon import CanonLayer, NoCanon
from lm.model.config import AttentionBackend, ModelConfig
from lm.model.feed_forward import FEED_FORWARDS
from lm.model.linear import Embedding, Linear
from lm.model.norms import NORMS, NoNorm
from lm.model.positions import RotaryEmbedding


class TransformerBlock(nn.Module):
    """Attention, then the feed-forward layer, each added to the residual stream.

    `norm_position: pre` normalizes the input of each sublayer (Xiong et al. 2020), `post` the sum after it (Vaswani et
    al. 2017). With `canon`, the input of each sublayer passes through a Canon layer. The blocks of a model share
    `rope`, or have none.
    """

    def __init__(
        self, config: ModelConfig, rope: RotaryEmbedding | None = None, attention_backend: AttentionBackend = "auto"
    ) -> None:
        super().__init__()
        self.norm_position = config.norm_position
        self.ln1 = NORMS[config.norm](config.d_model)
        self.canon_a = CanonLayer(config.d_model, place=0) if config.canon else NoCanon()
        self.attn = MultiHeadSelfAttention(
            config.d_model, config.num_heads, config.num_kv_heads, rope, config.qk_norm, attention_backend
        )
        self.ln2 = NORMS[config.norm](config.d_model)
        self.canon_c = CanonLayer(config.d_model, place=1) if config.canon else NoCanon()
        self.ffn = FEED_FORWARDS[config.ffn](config.d_model, config.d_ff)

    def forward(
        self,
        x: Tensor,
        token_positions: Tensor | None = None,
        document_starts: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(..., T, D) -> (..., T, D); arguments as for `TransformerLM.forward`."""
        if self.norm_position == "pre":
            h = self.canon_a(self.ln1(x), document_starts, cache)
            x = x + self.attn(h, token_positions, document_starts, cache)
            return x + self.ffn(self.canon_c(self.ln2(x), document_starts, cache))
        h = self.canon_a(x, document_starts, cache)
        x = self.ln1(x + self.attn(h, token_positions, document_starts, cache))
        return self.ln2(x + self.ffn(self.canon_c(x, document_starts, cache)))


class TransformerLM(nn.Module):
    """Token ids (..., T) -> logits (..., T, V) of the next token at every position.

    Args:
        attention_backend: see `lm.model.attention.causal_attention`.
        checkpoint_activations: keep only the input of each block for the backward pass, which then computes the rest
            again (Chen et al. 2016).

    Example:
        >>> model = TransformerLM(config, vocab_size=1000)
        >>> model(torch.tensor([[5, 17, 3]])).shape
        torch.Size([1, 3, 1000])
    """

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        attention_backend: AttentionBackend = "auto",
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.checkpoint_activations = checkpoint_activations
        # A tied matrix is also the head, whose logits for a normalized vector should have a standard deviation of 1.
        std = config.d_model**-0.5 if config.tie_embeddings else 1.0
        self.token_embeddings = Embedding(vocab_size, config.d_model, std)
        rope = None
        match config.position:
            case "rope":
                rope = RotaryEmbedding(config.rope_theta, config.d_head, config.context_length)  # shared by all blocks
            case "learned":
                # Small, as in GPT-2: at first, a position must not drown out the token.
                self.position_embeddings = Embedding(config.context_length, config.d_model, 0.02 * std)
            case "none":
                pass
            case _:
                assert_never(config.position)
        self.layers = nn.ModuleList(TransformerBlock(config, rope, attention_backend) for _ in range(config.num_layers))
        # A post-norm block already ends with a norm.
        self.ln_final = NORMS[config.norm](config.d_model) if config.norm_position == "pre" else NoNorm(config.d_model)
        self.lm_head = Linear(config.d_model, vocab_size)
        if config.tie_embeddings:
            self.lm_head.weight = self.token_embeddings.weight

    def forward(
        self,
        token_ids: Tensor,
        token_positions: Tensor | None = None,
        document_starts: Tensor | None = None,
        cache: CacheView | None = None,
    ) -> Tensor:
        """Compute the logits of the next token at every position.

        Args:
            token_ids: (..., T), with T at most `context_length`.
            token_positions: (..., T), by default 0, 1, ..., T - 1.
            document_starts: (B, T), the position at which each token's document begins; a token sees only its own
                document.
            cache: where to store keys and values, and which earlier ones to attend to; it also gives the positions.
        """
        return self.lm_head(self.hidden(token_ids, token_positions, document_starts, cache))

    def hidden(
        self,
        token_ids: Tensor,
        token_positions: Tensor | None = None,
        document_starts: Tensor | None = None,
        cache: CacheView | None = None,
    ) -> Tensor:
        """Compute the input of the head, (..., T, D); arguments as for `forward`."""
        if cache is not None:
            token_positions = cache.token_positions
        x = self.token_embeddings(token_ids)  # (..., T, D)
        if self.config.position == "learned":
            learned = self.position_embeddings.weight
            x = x + (learned[: x.shape[-2]] if token_positions is None else learned[token_positions])
        for index, layer in enumerate(self.layers):
            if cache is not None:
                x = layer(x, token_positions, document_starts, cache.layer(index))
            elif self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(
                    layer, x, token_positions, document_starts, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x = layer(x, token_positions, document_starts)
        return self.ln_final(x)
