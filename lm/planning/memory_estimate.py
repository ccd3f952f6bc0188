"""How many bytes a training step needs, from its configuration alone.

Bytes are those of eager PyTorch, counted tensor by tensor as the layers and the loss create them; torch.compile fuses
operations, and never stores some of these tensors. Norms, feed-forward layers and Canon layers report their own tensors
(see lm/model/norms.py, feed_forward.py and canon.py).
"""

import math

from lm.model.canon import CanonLayer
from lm.model.config import AttentionBackend, ModelConfig
from lm.model.cost import parameters
from lm.model.feed_forward import FEED_FORWARDS
from lm.model.fused.products import prefers_float32, prefers_onednn
from lm.model.norms import NORMS
from lm.training.config import OptimizerName, Parallelism, Precision, RunConfig, RuntimeConfig
from lm.training.loss import CHUNK_LOGITS


def training_bytes(
    config: ModelConfig,
    vocab_size: int,
    micro_batch_size: int,
    precision: Precision,
    *,
    num_micro_batches: int = 1,
    optimizer: OptimizerName = "adamw",
    cautious_weight_decay: bool = False,
    attention_backend: AttentionBackend = "auto",
    checkpoint_activations: bool = False,
    device: str = "cpu",
) -> dict[str, int]:
    """Bytes that PyTorch holds at the peak of a training step, by kind.

    `weights`, `optimizer` state and `gradients` are float32. Under bfloat16 autocast there are also `bfloat16_weights`,
    a copy of each matrix, unless products are computed in float32 (see `lm.model.fused.products`). `activations` are
    what the forward pass saves for the backward pass. The last key names the phase in which the peak occurs, and holds
    the temporary tensors of that phase:

    - `loss`, in most cases: all activations exist, and the logits of one chunk. The only gradient is the head's, unless
      earlier micro batches have left theirs.
    - `backward`, at its first layer, where attention holds its scores or activations are computed again; or at its
      last, where nearly all gradients exist.
    - `step`, if there are few tokens and many parameters: all gradients exist, and the temporary tensors of the
      optimizer.

    Document masks, the scratch memory of the attention kernels on a CPU (per thread, seven copies of a head's rows) and
    memory that libraries allocate without PyTorch are not counted.

    Args:
        device: "cpu", "cuda" or "mps".

    Example: 4 layers of d_model 512, 16 heads and d_ff 1344, vocabulary 10,000, 8 windows of 256 tokens in bfloat16
    need 570 MB in the phase `loss`: weights 91, optimizer 182, gradients 20, bfloat16_weights 25, activations 199, loss
    53.
    """
    count = parameters(config, vocab_size)
    total, matrices, head = sum(count.values()), count["attention"] + count["ffn"], vocab_size * config.d_model
    element = 2 if precision == "bfloat16" else 4
    tokens = micro_batch_size * config.context_length
    num_layers = config.num_layers

    layer = tokens * layer_bytes_per_token(config, element, attention_backend)
    has_copies = element == 2 and not (device == "cpu" and prefers_float32())
    layer_copies = 2 * matrices // num_layers if has_copies else 0
    final_norm = NORMS[config.norm].saved_bytes_per_token(config.d_model, 4) if config.norm_position == "pre" else 0
    ends = tokens * (final_norm + 16)  # the final norm, and the ids of inputs and targets
    if config.norm_position == "post" and _stream_element(config, element) == 2:
        # No norm precedes the first block: its input is float32, and is converted separately for three products.
        ends += tokens * (2 + 2 * 2) * config.d_model
        if config.canon:  # whose input has the same dtype
            ends += tokens * 2 * config.d_model
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
    step = _step_bytes(config, count, optimizer, cautious_weight_decay)
    phases = [  # temporary tensors; gradients, activations and copies of matrices that exist beside them
        ("loss", loss, first_gradients, saved, copies),
        ("backward", backward, first_gradients, first, first_copies),
        ("backward", backward, last_gradients, layer, layer_copies),
        ("step", step, all_gradients, 0, 0),
    ]
    phase, temporary, gradients, activations, bfloat16_weights = max(phases, key=lambda phase: sum(phase[1:]))
    return {
        "weights": 4 * total,
        "optimizer": 8 * total - (4 * matrices if optimizer == "muon" else 0),  # Muon has one moment, AdamW two
        "gradients": gradients,
        "bfloat16_weights": bfloat16_weights,
        "activations": activations,
        phase: temporary,
    }


def process_bytes(
    run: RunConfig, vocab_size: int, runtime: RuntimeConfig, device: str, num_processes: int
) -> dict[str, int]:
    """Bytes that each process holds at its peak, by kind: those of `training_bytes`, and those of a `checkpoint`.

    ddp: gradients are views into the buckets that are averaged, which exist from the first step to the end
    (DistributedDataParallel, gradient_as_bucket_view). All gradients therefore exist at any time, as if earlier micro
    batches had left them; gradients of earlier micro batches, which are not averaged yet, exist beside the buckets.

    fsdp with P processes: a process holds 1/P of the weights, and also the embeddings and the head, which stay whole
    from the forward pass to the end of the backward pass, and two blocks, one being computed while the next is
    gathered. It holds 1/P of the optimizer state. Gradients are as in one process: in the loss, the head's gradient is
    whole, and so are those of earlier micro batches, which the last one distributes. A peak in the optimizer's step is
    lower than estimated here.

    checkpoint: while training continues, there is a copy of the process's weights and optimizer state, and the content
    of the file that it writes, 1/P of the weights and the optimizer state of the model.
    """
    share = run.train.batch_size // num_processes
    size = min(runtime.micro_batch_size or share, share)
    num_micro_batches = math.ceil(share / size)
    parallelism: Parallelism | None = runtime.parallelism if num_processes > 1 else None
    kinds = training_bytes(
        run.model,
        vocab_size,
        size,
        run.train.precision,
        num_micro_batches=max(2, num_micro_batches) if parallelism == "ddp" else num_micro_batches,
        optimizer=run.optim.optimizer,
        cautious_weight_decay=run.optim.cautious_weight_decay,
        attention_backend=runtime.attention_backend,
        checkpoint_activations=runtime.checkpoint_activations,
        device=device,
    )
    if parallelism == "ddp" and num_micro_batches > 1:
        kinds["gradients"] += kinds["weights"]
    state = kinds["weights"] + kinds["optimizer"]
    part = math.ceil(state / num_processes)
    if parallelism != "fsdp":
        return {**kinds, "checkpoint": state + part}
    count = parameters(run.model, vocab_size)
    ends = 4 * (count["token_embeddings"] + count["position_embeddings"] + count["lm_head"])
    block = math.ceil((kinds["weights"] - ends) / run.model.num_layers)
    weights, optimizer = (math.ceil(kinds[name] / num_processes) for name in ("weights", "optimizer"))
    return {**kinds, "weights": weights + ends + 2 * block, "optimizer": optimizer, "checkpoint": 2 * part}


def _stream_element(config: ModelConfig, element: int) -> int:
    """Bytes per number of the residual stream. In post-norm it is the output of a norm, which may follow autocast."""
    return element if NORMS[config.norm].output_follows_autocast and config.norm_position == "post" else 4


def layer_bytes_per_token(config: ModelConfig, element: int, attention_backend: AttentionBackend) -> int:
    """What the forward pass of one block saves for its backward pass."""
    d_model, num_heads = config.d_model, config.num_heads
    norm, ffn = NORMS[config.norm], FEED_FORWARDS[config.ffn]
    # A norm's output is saved once for all products that read it, unless autocast converts it for each of them.
    shared = element == 4 or norm.output_follows_autocast
    inputs = (2 if shared else 3 + ffn.num_input_products) * d_model
    heads = 4 * d_model  # q, k, v and the result, in whichever layout
    factors = num_heads  # the log-sum-exp of each row of scores
    if config.qk_norm:
        normalized = num_heads + config.num_kv_heads
        heads += normalized * config.d_head
        factors += normalized
    scores = 0
    if attention_backend == "reference":  # scores and their exponentials in float32, and the softmax
        scores = (4 + 4 + element) * num_heads * config.context_length
        factors += num_heads  # maximum and sum, instead of the log-sum-exp
    norms = 2 * norm.saved_bytes_per_token(d_model, _stream_element(config, element))
    canon = 0
    if config.canon:  # reads the norm's output, or a residual stream that is one
        canon = 2 * CanonLayer.saved_bytes_per_token(d_model, element if norm.output_follows_autocast else 4)
    hidden = ffn.num_saved * ffn.hidden_width(config.d_ff)
    return norms + canon + element * (inputs + heads + hidden) + 4 * factors + scores


def _backward_bytes_per_token(config: ModelConfig, element: int, attention_backend: AttentionBackend) -> int:
    """Gradients and temporary tensors of the backward pass at its peak, beyond what it has freed by then."""
    ffn = FEED_FORWARDS[config.ffn]
    width = ffn.hidden_width(config.d_ff)
    attention_peak = 0
    if attention_backend == "reference":
        # Dividing by the sum takes five float32 tensors of scores; softmax and feed-forward layer are freed by then.
        attention_peak = (20 - element) * config.num_heads * config.context_length - element * ffn.num_saved * width
    norm_peak = NORMS[config.norm].backward_bytes_per_token(config.d_model)
    ffn_peak = element * ffn.num_backward * width
    return _stream_element(config, element) * config.d_model + max(norm_peak, ffn_peak, attention_peak)


def _loss_bytes(config: ModelConfig, vocab_size: int, tokens: int, element: int, device: str) -> int:
    """Temporary tensors of the chunked cross-entropy, beside the gradient of the head that it leaves."""
    # The head's input, and its gradient, which has the same size.
    hidden = tokens * config.d_model * (element if NORMS[config.norm].output_follows_autocast else 4)
    num_chunks = min(tokens, -(-tokens * vocab_size // CHUNK_LOGITS[device]))
    logits = -(-tokens // num_chunks) * vocab_size
    head = vocab_size * config.d_model
    # A chunk begins with its logits, in float32 beside those of the product, and ends with its share of the head's
    # gradient. For that, oneDNN copies the gradient of the logits, since it accepts no transposed tensor.
    product = 4 if device == "cpu" and prefers_float32() else element
    copies = 2 if product == 2 else 0
    transposed = 4 if product == 4 and device == "cpu" and prefers_onednn() else 0
    beginning = (4 + copies) * logits
    end = (product + transposed) * logits + (4 + copies) * head
    return 2 * hidden + copies * head + max(beginning, end)


def loss_slack_bytes(vocab_size: int, device: str) -> int:
    """How many bytes less a larger micro batch may need, because its tokens fill the chunks of the loss differently.

    A chunk has at most CHUNK_LOGITS logits and one more token's, each in at most eight bytes.
    """
    return 8 * (CHUNK_LOGITS[device] + vocab_size)


def _step_bytes(config: ModelConfig, count: dict[str, int], optimizer: OptimizerName, cautious: bool) -> int:
    """Temporary tensors of the optimizer's step."""
    if optimizer == "adamw":
        ffn_matrix = config.d_model * FEED_FORWARDS[config.ffn].hidden_width(config.d_ff)
        # One temporary tensor of the size of a parameter; to choose what decays, two at once, one of them of bools.
        return (5 if cautious else 4) * max(count["token_embeddings"], ffn_matrix)
    # Muon holds an update for each of its matrices, then orthogonalizes all those of one shape together.
    matrices, together = count["attention"] + count["ffn"], max(count["attention"], count["ffn"])
    return 4 * matrices + (4 + 4 + 2 + 2) * together  # as float32, scaled, and in bfloat16, before and after
