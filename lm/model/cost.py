"""What a model costs: its parameters and FLOPs, summed over what the layers report about themselves.

FLOPs are those of the matrix products and of Canon layers, 2 per multiply-add. Training takes three times as many as
the forward pass, because the backward pass takes twice as many. Norms, activation functions and softmax are not counted
(Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B). Memory is in lm/planning/memory_estimate.py.
"""

from lm.model.attention import MultiHeadSelfAttention
from lm.model.canon import CanonLayer
from lm.model.config import ModelConfig
from lm.model.feed_forward import FEED_FORWARDS
from lm.model.linear import Embedding, Linear
from lm.model.norms import NORMS, RMSNorm


def parameters(config: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Number of parameters by component. Their sum is the model's; a tied head counts as 0.

    Example: vocab_size 10,000, d_model 512, 4 layers, d_ff 1344 give 4 (4·512² + 3·512·1344) + 9·512 = 12,456,448
    parameters in blocks and norms, and twice 10,000·512 = 5,120,000 in embeddings and head.
    """
    d_model, num_layers = config.d_model, config.num_layers
    attention = MultiHeadSelfAttention.num_parameters(d_model, config.num_heads, config.num_kv_heads)
    num_norms = 2 * num_layers + (config.norm_position == "pre")  # with the final norm
    qk_norms = 2 * num_layers * RMSNorm.num_parameters(config.d_head) if config.qk_norm else 0
    learned = Embedding.num_parameters(config.context_length, d_model) if config.position == "learned" else 0
    return {
        "token_embeddings": Embedding.num_parameters(vocab_size, d_model),
        "position_embeddings": learned,
        "attention": num_layers * attention,
        "ffn": num_layers * FEED_FORWARDS[config.ffn].num_parameters(d_model, config.d_ff),
        "canon": 2 * num_layers * CanonLayer.num_parameters(d_model) if config.canon else 0,
        "norms": num_norms * NORMS[config.norm].num_parameters(d_model) + qk_norms,
        "lm_head": 0 if config.tie_embeddings else Linear.num_parameters(d_model, vocab_size),
    }


def training_flops_per_token(config: ModelConfig, vocab_size: int, sequence_length: int | None = None) -> int:
    """FLOPs of forward and backward pass per token of a sequence, by default one of `context_length` tokens.

    For the layers here this is 6 per weight of a matrix product or a Canon layer, and 12 · num_layers · d_model ·
    sequence_length for the scores and the weighted values.
    """
    d_model, length = config.d_model, sequence_length or config.context_length
    attention = MultiHeadSelfAttention.flops_per_token(d_model, config.num_heads, config.num_kv_heads, length)
    ffn = FEED_FORWARDS[config.ffn].flops_per_token(d_model, config.d_ff)
    canon = 2 * CanonLayer.flops_per_token(d_model) if config.canon else 0
    return 3 * (config.num_layers * (attention + ffn + canon) + Linear.flops_per_token(d_model, vocab_size))
