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

    `activations` is what the forward pass of one micro batch and its loss save for the backward pass in eager PyTorch
    with its fused attention. Under bfloat16 autocast that includes a bfloat16 copy of each matrix.
    """
    count = parameters(config, vocab_size)
    total = sum(count.values())
    matrices = count["attention"] + count["ffn"] + vocab_size * config.d_model
    copies = 2 * matrices if precision == "bfloat16" else 0
    tokens = micro_batch_size * config.context_length
    return {
        "weights": 4 * total,
        "gradients": 4 * total,
        "optimizer": 8 * total,
        "activations": tokens * _saved_bytes_per_token(config, vocab_size, precision) + copies,
    }


def _saved_bytes_per_token(config: ModelConfig, vocab_size: int, precision: str) -> int:
    d_model, num_heads = config.d_model, config.num_heads
    element = 2 if precision == "bfloat16" else 4
    # In float32: what it normalises, the result before its weight, and one factor a row.
    norm = 0 if config.norm == "none" else 4 * (2 * d_model + 1)
    # Autocast converts the input of each product on its own; in float32 q, k and v share theirs, and so do w1 and w3.
    inputs = (5 if precision == "bfloat16" else 2) * d_model
    heads = 4 * d_model + (d_model if config.position == "rope" else 0)  # q, k, v, result, and its copy in token order
    ffn = {"swiglu": 5 * config.d_ff, "silu": 3 * (3 * config.d_ff // 2)}[config.ffn]
    layer = 2 * norm + element * (inputs + heads + ffn) + 4 * num_heads
    final = (norm if config.norm_position == "pre" else 0) + element * d_model
    loss = 4 * vocab_size + 4 + 2 * 8  # the logits in float32, their log-sum-exp, the ids of token and target
    return config.num_layers * layer + final + loss
