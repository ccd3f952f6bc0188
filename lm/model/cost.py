"""What a model costs, from its configuration alone: parameters, FLOPs, bytes.

Matrix products are counted as 2 FLOPs a multiplication, the backward pass as twice the forward one; norms, activations
and softmax are left out (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B). Bytes are those of eager
PyTorch, tensor by tensor as the layers and the loss create them; what torch.compile fuses is never stored.
"""

from typing import Literal

from lm.model.config import AttentionBackend, ModelConfig
from lm.model.fused.onednn import prefers_onednn

Precision = Literal["float32", "bfloat16"]

# The most logits that the chunked cross-entropy holds at once. On a CPU they stay in its cache, on a GPU they fill it.
CHUNK_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 27, "mps": 1 << 25}

# Tensors of a feed-forward layer's width: what is saved of its element-wise operations and their result, and what their
# backward pass holds beyond that at its fullest.
_FFN_SAVED = {"swiglu": 3, "silu": 3}
_FFN_BACKWARD = 2


def parameters(config: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Number of parameters by component; their sum is the model's, a tied head counting nothing.

    Example: vocab_size 10,000, d_model 512, 4 layers, d_ff 1344 have 4 (4·512² + 3·512·1344) + 9·512 = 12,456,448
    parameters in blocks and norms, and twice 10,000·512 = 5,120,000 in embeddings and head.
    """
    d_model, d_kv = config.d_model, config.num_kv_heads * config.d_head
    norm = {"rmsnorm": d_model, "layernorm": 2 * d_model, "none": 0}[config.norm]
    qk_norms = 2 * config.d_head if config.qk_norm else 0
    return {
        "token_embeddings": vocab_size * d_model,
        "position_embeddings": config.context_length * d_model if config.position == "learned" else 0,
        "attention": config.num_layers * (2 * d_model * d_model + 2 * d_model * d_kv),
        "ffn": config.num_layers * 3 * d_model * config.d_ff,  # silu: 2 matrices of width 3/2 d_ff
        "norms": norm * (2 * config.num_layers + (config.norm_position == "pre")) + config.num_layers * qk_norms,
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


def training_bytes(
    config: ModelConfig,
    vocab_size: int,
    micro_batch_size: int,
    precision: Precision,
    *,
    num_micro_batches: int = 1,
    optimizer: Literal["adamw", "muon"] = "adamw",
    attention_backend: AttentionBackend = "sdpa",
    checkpoint_activations: bool = False,
    device: Literal["cpu", "cuda", "mps"] = "cpu",
) -> dict[str, int]:
    """Bytes that PyTorch holds at the peak of a training step, by kind.

    `weights`, `optimizer` state and `gradients` are float32; under bfloat16 autocast there are `bfloat16_weights`
    beside them, a copy of each matrix. `activations` are what the forward pass saves for the backward pass. The last
    kind is named by the phase in which the peak falls, and is what that phase needs for itself:

    - `loss`, as a rule: all activations are there, and the logits of a chunk. Of the gradients only the head's is,
      unless earlier micro batches have left theirs.
    - `backward`, at its first layer, where attention keeps its scores or activations are computed again; or at its
      last, where nearly all gradients are there.
    - `step`, where few tokens meet many parameters: all gradients are there, and the optimizer's scratch memory.

    Masks of documents are not counted, nor what libraries take without asking PyTorch.

    Example: 4 layers of d_model 512, 16 heads and d_ff 1344, vocabulary 10,000, 8 windows of 256 tokens in bfloat16
    take 570 MB in the loss: weights 91, optimizer 182, gradients 20, bfloat16_weights 25, activations 199, loss 53.
    """
    count = parameters(config, vocab_size)
    total, matrices, head = sum(count.values()), count["attention"] + count["ffn"], vocab_size * config.d_model
    element = 2 if precision == "bfloat16" else 4
    tokens = micro_batch_size * config.context_length
    num_layers = config.num_layers

    layer = tokens * _layer_bytes_per_token(config, element, attention_backend)
    layer_copies = 2 * matrices // num_layers if element == 2 else 0
    ends = tokens * (_norm_bytes_per_token(config, 4) if config.norm_position == "pre" else 0) + tokens * 16  # and ids
    if config.norm_position == "post" and _stream_element(config, element) == 2:
        # No norm stands before the first block: what enters it is float32, and converted for three products apart.
        ends += tokens * (2 + 2 * 2) * config.d_model
    saved, copies = num_layers * layer + ends, num_layers * layer_copies
    first, first_copies = saved, copies
    if checkpoint_activations:
        inputs = tokens * _stream_element(config, element) * config.d_model
        saved, copies = num_layers * inputs + ends, 0
        first, first_copies = saved - inputs + layer, layer_copies

    all_gradients = 4 * total
    first_gradients = 4 * head + (all_gradients if num_micro_batches > 1 else 0)
    last_gradients = all_gradients - (0 if config.tie_embeddings else 4 * head)  # the embeddings' comes at the end
    loss = _loss_bytes(config, vocab_size, tokens, element, device)
    backward = tokens * _backward_bytes_per_token(config, element, attention_backend)
    step = _step_bytes(config, count, optimizer)
    phases = [  # and the gradients, activations and copies of matrices that are there beside what it needs itself
        ("loss", loss, first_gradients, saved, copies),
        ("backward", backward, first_gradients, first, first_copies),
        ("backward", backward, last_gradients, layer, layer_copies),
        ("step", step, all_gradients, 0, 0),
    ]
    phase, scratch, gradients, activations, bfloat16_weights = max(phases, key=lambda phase: sum(phase[1:]))
    return {
        "weights": 4 * total,
        "optimizer": 8 * total - (4 * matrices if optimizer == "muon" else 0),  # Muon keeps one moment, AdamW two
        "gradients": gradients,
        "bfloat16_weights": bfloat16_weights,
        "activations": activations,
        phase: scratch,
    }


def _stream_element(config: ModelConfig, element: int) -> int:
    """Bytes of a number of the residual stream, in post-norm a norm's result, which RMSNorm gives autocast's type."""
    return element if config.norm == "rmsnorm" and config.norm_position == "post" else 4


def _layer_bytes_per_token(config: ModelConfig, element: int, attention_backend: str) -> int:
    """What the forward pass of one block saves for its backward pass."""
    d_model, num_heads = config.d_model, config.num_heads
    # What is normalised is there once for all products that read it, unless autocast converts it for each of them.
    shared = element == 4 or config.norm == "rmsnorm"
    inputs = (2 if shared else 3 + (2 if config.ffn == "swiglu" else 1)) * d_model
    heads = 4 * d_model  # q, k, v and the result, in whichever order their numbers lie
    factors = num_heads  # the log-sum-exp of each row of scores
    if config.qk_norm:
        normalised = num_heads + config.num_kv_heads
        heads += normalised * config.d_head
        factors += normalised
    scores = 0
    if attention_backend == "reference":  # scores and their exponentials in float32, and the softmax
        scores = (4 + 4 + element) * num_heads * config.context_length
        factors += num_heads  # maximum and sum, instead of the log-sum-exp
    norms = 2 * _norm_bytes_per_token(config, _stream_element(config, element))
    ffn = _FFN_SAVED[config.ffn] * _ffn_width(config)
    return norms + element * (inputs + heads + ffn) + 4 * factors + scores


def _ffn_width(config: ModelConfig) -> int:
    return config.d_ff if config.ffn == "swiglu" else 3 * config.d_ff // 2


def _norm_bytes_per_token(config: ModelConfig, element: int) -> int:
    match config.norm:
        case "rmsnorm":
            return element * config.d_model + 4  # its input, and one factor
        case "layernorm":
            return 4 * (2 * config.d_model + 1)  # its input without the mean, then normalised
        case "none":
            return 0


def _backward_bytes_per_token(config: ModelConfig, element: int, attention_backend: str) -> int:
    """Gradients and scratch memory of the backward pass beyond what it has already freed, at its fullest."""
    norm = 0 if config.norm == "none" else 5 * 4 * config.d_model
    ffn = element * _FFN_BACKWARD * _ffn_width(config)
    attention = 0
    if attention_backend == "reference":
        # Dividing by the sum takes five float32 tensors of scores; softmax and feed-forward layer are behind it.
        attention = (20 - element) * config.num_heads * config.context_length
        attention -= element * _FFN_SAVED[config.ffn] * _ffn_width(config)
    return _stream_element(config, element) * config.d_model + max(norm, ffn, attention)


def _loss_bytes(config: ModelConfig, vocab_size: int, tokens: int, element: int, device: str) -> int:
    """Scratch memory of the chunked cross-entropy, beside the gradient of the head that it leaves."""
    hidden = tokens * config.d_model * (element if config.norm == "rmsnorm" else 4)  # and as much for its gradient
    num_chunks = min(tokens, -(-tokens * vocab_size // CHUNK_LOGITS[device]))
    logits = -(-tokens // num_chunks) * vocab_size
    head = vocab_size * config.d_model
    # A chunk begins with its logits, in float32 beside those of the product, and ends with its share of the head's
    # gradient, for which oneDNN, which takes no transposed tensor, copies the logits'.
    copies = 2 if element == 2 else 0
    transposed = 4 if element == 4 and device == "cpu" and prefers_onednn() else 0
    beginning = (4 + copies) * logits
    end = (element + transposed) * logits + (4 + copies) * head
    return 2 * hidden + copies * head + max(beginning, end)


def _step_bytes(config: ModelConfig, count: dict[str, int], optimizer: str) -> int:
    """Scratch memory of the optimizer's step."""
    largest = max(count["token_embeddings"], count["ffn"] // (3 if config.ffn == "swiglu" else 2) // config.num_layers)
    if optimizer == "adamw":
        return 4 * largest
    # Muon holds an update for each of its matrices, then orthogonalises all those of one shape together.
    matrices, together = count["attention"] + count["ffn"], max(count["attention"], count["ffn"])
    return 4 * matrices + (4 + 4 + 2 + 2) * together  # as float32, scaled, and in bfloat16, before and after
