"""How long a run would take on a device that is not here: a model of a training step, not a measurement.

A device computes the matrix products, moves the other tensors through its memory, and is told about every kernel by
Python. The first two take turns; Python runs ahead of a GPU, and holds it up only if it takes longer:

    seconds per step = max(compute + memory, launches)
    compute  = FLOPs / (COMPUTE_SHARE · peak speed)
    memory   = bytes / bandwidth
    launches = number of kernels · LAUNCH_SECONDS

The first two terms are those of a roofline (Williams et al. 2009). Their sum agrees with a published time: GPT-2 with
124 million parameters on 8 A100 with 40 GB, which takes about 4 days by nanoGPT's README, is planned as 4.0 days.
"""

import math
from dataclasses import dataclass

from lm.corpus.config import DataConfig
from lm.model.config import ModelConfig
from lm.model.cost import training_flops_per_token
from lm.model.feed_forward import FEED_FORWARDS
from lm.planning.devices import KnownDevice
from lm.planning.memory_estimate import layer_bytes_per_token, training_bytes
from lm.training.config import RunConfig, RuntimeConfig
from lm.training.console import duration, si
from lm.training.evaluation import CONTINUATION_TOKENS, MAX_DOCUMENT_TOKENS

COMPUTE_SHARE = 0.4
LAUNCH_SECONDS = 10e-6  # without torch.compile, mostly Python's and autograd's time

BYTES_PER_TOKEN = 4  # of text; the tokenizer of the default model has 3.8, GPT-2's about 4.4
_WHOLE_VAL_BYTES = {"tinystories": 22_500_000}  # the size of TinyStoriesV2-GPT4-valid.txt


@dataclass(frozen=True, kw_only=True)
class PlannedTime:
    """The planned time of a run; `str(planned)` is a paragraph for the console.

    `compute`, `memory` and `launches` are in seconds per step, `evaluation` is in seconds per evaluation, or None if
    the size of the val split is unknown.
    """

    device: KnownDevice
    precision: str
    num_devices: int
    max_steps: int
    tokens_per_step: float
    kernels: int
    compute: float
    memory: float
    launches: float
    num_evaluations: int
    evaluation: float | None

    @property
    def step(self) -> float:
        """Seconds per step."""
        return max(self.compute + self.memory, self.launches)

    @property
    def tokens_per_second(self) -> float:
        """Training tokens per second, of all devices together, not counting evaluations."""
        return self.tokens_per_step / self.step

    @property
    def seconds(self) -> float:
        """The whole run, with its evaluations if their time is known."""
        return self.max_steps * self.step + self.num_evaluations * (self.evaluation or 0)

    @property
    def largest_term(self) -> str:
        """The name of the term that dominates a step."""
        if self.launches > self.compute + self.memory:
            return "launches"
        return "compute" if self.compute >= self.memory else "memory"

    def __str__(self) -> str:
        device = f"{self.num_devices} x {self.device.title}" if self.num_devices > 1 else self.device.title
        peak = si(self.device.peak(self.precision), "FLOP/s")
        evaluations = f"not counting {self.num_evaluations} evaluations, because the size of the val split is unknown"
        if self.evaluation is not None:
            evaluations = f"{duration(self.num_evaluations * self.evaluation)} of it for evaluations"
        communication = "; communication between the devices is not counted" if self.num_devices > 1 else ""
        bandwidth, launch = si(self.device.bandwidth, "B/s"), f"{LAUNCH_SECONDS * 1e6:.0f} µs"
        return (
            f"time on {device}, planned, not measured: about {duration(self.seconds)}, {evaluations}\n"
            f"  {self.step:.3g} s per step, {self.tokens_per_second:,.0f} tokens per second\n"
            f"  compute {self.compute:.2g} s, memory {self.memory:.2g} s, launches {self.launches:.2g} s per step: "
            f"{self.largest_term} is the largest term\n"
            f"  assumes {COMPUTE_SHARE:.0%} of the peak of {peak} in {self.precision}, {bandwidth} of memory "
            f"bandwidth, and {launch} for each of {self.kernels:,} kernels{communication}"
        )


def planned_time(
    run: RunConfig, vocab_size: int, runtime: RuntimeConfig, device: KnownDevice, val_tokens: int | None
) -> PlannedTime:
    """Plan the time of a run on `runtime.num_processes` devices like `device`, each for its share of the batch.

    `val_tokens` is the size of the val split, None if it is unknown. An evaluation reads it and up to 65,536 tokens of
    whole documents, at three times the speed of training, because there is no backward pass, and generates 64 tokens.

    Raises:
        UserError: the device does not support `train.precision`.
    """
    train, num_devices = run.train, runtime.num_processes
    peak = device.peak(train.precision)
    tokens_per_step = run.num_tokens(train.max_steps) / train.max_steps
    tokens = tokens_per_step / num_devices
    size = runtime.micro_batch_size or train.batch_size
    num_micro_batches = math.ceil(train.batch_size / num_devices / size)
    flops = tokens * training_flops_per_token(run.model, vocab_size)
    if runtime.checkpoint_activations:  # a second forward pass
        flops *= 4 / 3
    if run.optim.optimizer == "muon":
        flops += orthogonalization_flops(run.model)
    kernels = num_kernels(run.model, num_micro_batches, runtime.compile)
    compute = flops / (COMPUTE_SHARE * peak)
    memory = moved_bytes(run, vocab_size, runtime, tokens, num_micro_batches) / device.bandwidth
    launches = kernels * LAUNCH_SECONDS
    evaluation = None
    if val_tokens is not None:
        read = val_tokens / num_devices + min(val_tokens, MAX_DOCUMENT_TOKENS)
        forward = _kernels_of_micro_batch(run.model) / 3 * LAUNCH_SECONDS
        evaluation = read * max(compute + memory, launches) / tokens / 3 + CONTINUATION_TOKENS * forward
    return PlannedTime(
        device=device,
        precision=train.precision,
        num_devices=num_devices,
        max_steps=train.max_steps,
        tokens_per_step=tokens_per_step,
        kernels=kernels,
        compute=compute,
        memory=memory,
        launches=launches,
        num_evaluations=1 + math.ceil(train.max_steps / train.eval_every),  # the first one before any step
        evaluation=evaluation,
    )


def planned_val_tokens(data: DataConfig) -> int | None:
    """An estimate of the number of tokens in the val split, or None if that depends on files."""
    size = data.val_bytes or _WHOLE_VAL_BYTES.get(data.source)
    return None if size is None else size // BYTES_PER_TOKEN


def moved_bytes(
    run: RunConfig, vocab_size: int, runtime: RuntimeConfig, tokens: float, num_micro_batches: int
) -> float:
    """An estimate of the bytes that a step on `tokens` tokens reads and writes outside of matrix products.

    Weights are read by the forward and the backward pass of every micro batch, which also reads and writes gradients.
    Clipping and AdamW take 23 passes over tensors of the size of the weights, or 10 if torch.compile fuses them. What
    is saved for the backward pass is written once and read twice, and has a gradient that is written and read. The loss
    takes eleven passes over its logits in float32, or five if they are fused.
    """
    kinds = training_bytes(run.model, vocab_size, 1, run.train.precision, optimizer=run.optim.optimizer)
    element = 2 if run.train.precision == "bfloat16" else 4
    saved = run.model.num_layers * layer_bytes_per_token(run.model, element, runtime.attention_backend)
    update_passes, logits_passes = (10, 5) if runtime.compile else (23, 11)
    passes = 4 * num_micro_batches + update_passes
    return passes * kinds["weights"] + tokens * (5 * saved + logits_passes * 4 * vocab_size)


def num_kernels(model: ModelConfig, num_micro_batches: int, compile: bool) -> int:
    """An estimate of the number of kernels that a step launches.

    It counts PyTorch's operations with the default switches. A block has about 100 in its forward and backward pass,
    and the embeddings, the loss and the rest about 50. AdamW has eight for each tensor, nine of which are in a block.
    torch.compile fuses them to about a quarter.
    """
    count = num_micro_batches * _kernels_of_micro_batch(model) + 8 * (9 * model.num_layers + 3)
    return count // 4 if compile else count


def _kernels_of_micro_batch(model: ModelConfig) -> int:
    return 100 * model.num_layers + 50


def orthogonalization_flops(model: ModelConfig) -> int:
    """FLOPs of Muon's five Newton-Schulz steps: 4 R² C + 2 R³ for a matrix with R rows and C >= R columns."""
    d_model, d_kv = model.d_model, model.num_kv_heads * model.d_head
    ffn = FEED_FORWARDS[model.ffn]
    width = ffn.hidden_width(model.d_ff)
    num_ffn = ffn.num_parameters(d_model, model.d_ff) // (d_model * width)
    shapes = 2 * [(d_model, d_model)] + 2 * [(d_kv, d_model)] + num_ffn * [(width, d_model)]
    return 5 * model.num_layers * sum(4 * min(s) ** 2 * max(s) + 2 * min(s) ** 3 for s in shapes)
