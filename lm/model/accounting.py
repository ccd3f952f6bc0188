"""What a model costs, from its configuration alone: parameters, FLOPs, bytes.

Matrix products are counted as 2 FLOPs a multiplication, the backward pass as twice the forward one; norms, activations
and softmax are left out (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B).
"""

from lm.model.config import ModelConfig


def parameters(config: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Number of parameters by component; their sum is the model's, a tied head counting nothing.

    Example: vocab_size 10,000, d_model 512, 4 layers, d_ff 1344 have 4 (4·512² + 3·512·1344) + 9·512 = 12,456,448
    parameters in blocks and norms, and twice 10,000·512 = 5,120,000 in embeddings and head.
    """
    d_model, d_kv = config.d_model, config.num_kv_heads * config.d_head
    norm = {"rmsnorm": d_model, "layernorm": 2 * d_model, "none": 0}[config.norm]
    return {
        "token_embeddings": vocab_size * d_model,
        "position_embeddings": config.context_length * d_model if config.position == "learned" else 0,
        "attention": config.num_layers * (2 * d_model * d_model + 2 * d_model * d_kv),
        "ffn": config.num_layers * 3 * d_model * config.d_ff,  # silu: 2 matrices of width 3/2 d_ff
        "norms": norm * (2 * config.num_layers + (config.norm_position == "pre")),
        "lm_head": 0 if config.tie_embeddings else vocab_size * d_model,
    }


def training_flops_per_token(config: ModelConfig, vocab_size: int, sequence_length: int | None = None) -> int:
    """FLOPs of forward and backward for one token of a sequence (default: of `context_length` tokens).

    6 for each weight of a matrix product, and 12 · num_layers · d_model · sequence_length for the scores and the
    weighted values, whose causal half that is masked counts too, as is usual where MFU is compared.
    """
    count = parameters(config, vocab_size)
    products = count["attention"] + count["ffn"] + vocab_size * config.d_model
    length = sequence_length or config.context_length
    return 6 * products + 12 * config.num_layers * config.d_model * length


def training_bytes(config: ModelConfig, vocab_size: int, micro_batch_size: int, precision: str) -> dict[str, int]:
    """Bytes held while training, by kind; weights, gradients and AdamW's two moments are float32.

    `activations` are the tensors that the forward pass of one micro batch saves for the backward pass, as eager PyTorch
    with its fused attention does: a float32 stream under bfloat16 autocast, whose products save bfloat16 operands.
    """
    total = sum(parameters(config, vocab_size).values())
    return {
        "weights": 4 * total,
        "gradients": 4 * total,
        "optimizer": 8 * total,
        "activations": micro_batch_size * config.context_length * _activation_bytes_per_token(config, vocab_size, precision),
    }
