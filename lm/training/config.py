"""The sections `optim`, `train` and `runtime` of params.yaml, and the configuration of one training run."""

from dataclasses import dataclass
from typing import Literal

from lm.errors import quote
from lm.model.config import AttentionBackend, ModelConfig
from lm.schema import check_range

MAX_STEPS = 10**9
MAX_BATCH_SIZE = 2**20  # sequences
_LARGEST_FACTOR = 1000.0

OptimizerName = Literal["adamw", "muon"]
Schedule = Literal["cosine", "wsd"]
DecayShape = Literal["linear", "1-sqrt"]
Precision = Literal["float32", "bfloat16"]
Windows = Literal["stream", "documents"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Parallelism = Literal["ddp", "fsdp"]
Tracking = Literal["none", "tensorboard", "wandb"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and the learning-rate schedule.

    With `optimizer: muon`, Muon updates the matrices of the blocks and AdamW all other parameters, at the same learning
    rate. `momentum` belongs to Muon; `beta1`, `beta2` and `eps` belong to AdamW. With `cautious_weight_decay`, only the
    weights that the update also moves toward 0 decay (see `lm.training.adamw.decay`). `decay_steps` and `decay_shape`
    are the length and the shape of the final decay of `schedule: wsd`. `max_grad_norm` is the norm above which
    gradients are clipped.
    """

    optimizer: OptimizerName
    max_learning_rate: float
    min_learning_rate: float
    schedule: Schedule
    warmup_steps: int
    decay_steps: int
    decay_shape: DecayShape
    weight_decay: float
    cautious_weight_decay: bool
    momentum: float
    beta1: float
    beta2: float
    eps: float
    max_grad_norm: float

    def __post_init__(self) -> None:
        if self.max_learning_rate <= 0:
            raise ValueError(f"max_learning_rate: expected a positive number, got {self.max_learning_rate}")
        # The steps multiply these by other factors, and the products must stay within the range of float32.
        for name in ("max_learning_rate", "weight_decay", "eps"):
            if getattr(self, name) > _LARGEST_FACTOR:
                raise ValueError(f"{name}: expected at most {_LARGEST_FACTOR:g}, got {getattr(self, name)}")
        if not 0 <= self.min_learning_rate <= self.max_learning_rate:
            raise ValueError(
                f"min_learning_rate: expected 0 to max_learning_rate = {self.max_learning_rate}, "
                f"got {self.min_learning_rate}"
            )
        check_range(self, ("warmup_steps", "decay_steps"), 0, MAX_STEPS)
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay: expected 0 or more, got {self.weight_decay}")
        for name in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 or more and less than 1, got {getattr(self, name)}")
        for name in ("eps", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The length of training, its batches and its starting point.

    `batch_size` counts windows of `context_length` tokens per step. With `windows: documents`, they begin where
    documents begin; with `stream`, they follow each other (see `lm.training.batches`). During the first
    `short_fraction` of the steps, each window is replaced by as many shorter ones of `short_context_length` tokens as
    fit into it: a model learns to look back sooner in short windows (Press et al. 2021, Shortformer; Li et al. 2022).

    `document_mask` prevents tokens from attending to other documents in the same window. A step whose loss or gradient
    is not finite is skipped; the run ends when more than `max_skipped_steps` have been skipped. Training starts from
    the model in the folder `initial_model`, or from random weights if that is `none`. Every evaluation also generates a
    greedy continuation of `prompt`.
    """

    max_steps: int
    batch_size: int
    windows: Windows
    short_fraction: float
    short_context_length: int
    eval_every: int
    seed: int
    precision: Precision
    document_mask: bool
    max_skipped_steps: int
    initial_model: str
    prompt: str

    def __post_init__(self) -> None:
        check_range(self, ("max_steps", "eval_every"), 1, MAX_STEPS)
        check_range(self, ("max_skipped_steps",), 0, MAX_STEPS)
        check_range(self, ("short_context_length",), 1, 2**24)
        if not 0 <= self.short_fraction <= 1:
            raise ValueError(f"short_fraction: expected 0 to 1, got {self.short_fraction}")
        check_range(self, ("batch_size",), 1, MAX_BATCH_SIZE)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected 0 to {2**32 - 1}, got {self.seed}")
        if not self.initial_model:
            raise ValueError("initial_model: expected none or the folder of a model, got ''")
        if not self.prompt:
            raise ValueError("prompt: expected some text, got ''")


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Settings that change the speed of a run, and its results only by rounding errors. No stage depends on them.

    `num_processes` processes on this machine train together. Each holds the whole model (`parallelism: ddp`) or a shard
    of it (`fsdp`). `micro_batch_size` is the number of sequences that a process computes at once; 0 means its whole
    share of the batch. With `checkpoint_activations`, only the input of each block is kept for the backward pass, which
    recomputes the rest. A checkpoint is saved every `checkpoint_every` steps, and the newest `keep_checkpoints` of them
    are kept. `tracking` also logs losses and rates to TensorBoard or Weights & Biases.

    `cluster` says where text is read, counted and encoded, and where cells are trained: in the process of the stage
    (`none`), by several processes on this machine (`local`), or on a running Ray cluster (its address).
    """

    device: DeviceName
    num_processes: int
    parallelism: Parallelism
    compile: bool
    attention_backend: AttentionBackend
    micro_batch_size: int
    checkpoint_activations: bool
    checkpoint_every: int
    keep_checkpoints: int
    tracking: Tracking
    cluster: str

    def __post_init__(self) -> None:
        check_range(self, ("micro_batch_size",), 0, MAX_BATCH_SIZE)
        check_range(self, ("num_processes",), 1, 128)
        check_range(self, ("checkpoint_every", "keep_checkpoints"), 1, MAX_STEPS)
        if not self.cluster.strip():
            raise ValueError(f"cluster: expected none, local or the address of a cluster, got {quote(self.cluster)}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The configuration of one training run. Together with the data and the code, it determines the result."""

    model: ModelConfig
    optim: OptimConfig
    train: TrainConfig

    @property
    def short_steps(self) -> int:
        """The number of steps at the beginning that read short windows."""
        return round(self.train.short_fraction * self.train.max_steps)

    @property
    def short_context_length(self) -> int:
        """The number of tokens of a short window."""
        return min(self.train.short_context_length, self.model.context_length)

    @property
    def num_short_windows(self) -> int:
        """The number of short windows that are read in place of one of `context_length` tokens."""
        return self.model.context_length // self.short_context_length

    def window(self, step: int) -> tuple[int, int]:
        """The number of tokens in the windows of training step `step`, and how many of them replace a long one."""
        if step <= self.short_steps:
            return self.short_context_length, self.num_short_windows
        return self.model.context_length, 1

    def num_tokens(self, step: int) -> int:
        """The number of tokens in the batches of the first `step` steps."""
        short = min(step, self.short_steps)
        short_tokens = self.num_short_windows * self.short_context_length
        return self.train.batch_size * (short * short_tokens + (step - short) * self.model.context_length)
