"""The sections `optim`, `train` and `runtime`."""

from dataclasses import dataclass
from typing import Literal

from lm.model.config import AttentionBackend

OptimizerName = Literal["adamw", "muon"]
Schedule = Literal["cosine", "wsd"]
DecayShape = Literal["linear", "1-sqrt"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule.

    `name: muon` updates the matrices of the blocks by Muon with `momentum`, and the rest by AdamW, at the same rate;
    `beta1`, `beta2` and `eps` are AdamW's. `decay_steps` is the length of the last, falling part of `schedule: wsd`,
    `decay_shape` its form.
    """

    name: OptimizerName
    max_learning_rate: float
    min_learning_rate: float
    schedule: Schedule
    warmup_steps: int
    decay_steps: int
    decay_shape: DecayShape
    weight_decay: float
    momentum: float
    beta1: float
    beta2: float
    eps: float
    max_grad_norm: float

    def __post_init__(self) -> None:
        if self.max_learning_rate <= 0:
            raise ValueError(f"max_learning_rate: expected a positive number, got {self.max_learning_rate}")
        if not 0 <= self.min_learning_rate <= self.max_learning_rate:
            raise ValueError(
                f"min_learning_rate: expected 0 to max_learning_rate = {self.max_learning_rate}, "
                f"got {self.min_learning_rate}"
            )
        for name in ("warmup_steps", "decay_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 or more and less than 1, got {getattr(self, name)}")
        for name in ("eps", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """`batch_size` counts sequences an update; `prompt` is continued greedily at every evaluation.

    `document_mask` keeps the documents of a window from seeing each other. Up to `max_skipped_steps` updates whose loss
    or gradient is not finite are left out; one more ends the run. The run starts from the weights of the model in the
    folder `initial_model`, or with `none` from random ones.
    """

    max_steps: int
    batch_size: int
    eval_every: int
    seed: int
    precision: Literal["float32", "bfloat16"]
    document_mask: bool
    max_skipped_steps: int
    initial_model: str
    prompt: str

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if self.max_skipped_steps < 0:
            raise ValueError(f"max_skipped_steps: expected 0 or more, got {self.max_skipped_steps}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected 0 to {2**32 - 1}, got {self.seed}")
        if not self.initial_model:
            raise ValueError("initial_model: expected none or the folder of a model, got ''")
        if not self.prompt:
            raise ValueError("prompt: expected some text, got ''")


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """What changes speed and never results beyond rounding; no stage tracks it.

    `num_processes` processes of this machine train together; `parallelism` keeps the whole model in each (ddp), or a
    share of it (fsdp). `micro_batch_size` counts the sequences in a process's memory at once; 0 takes all of its share
    of the batch. `checkpoint_activations` keeps only what enters a block, and computes the rest of it again on the way
    back. Of the checkpoints, one every `checkpoint_every` steps, the `keep_checkpoints` newest stay. `tracking` also
    sends losses and rates elsewhere while the run goes on.
    """

    device: Literal["auto", "cpu", "cuda", "mps"]
    num_processes: int
    parallelism: Literal["ddp", "fsdp"]
    compile: bool
    attention_backend: AttentionBackend
    micro_batch_size: int
    checkpoint_activations: bool
    checkpoint_every: int
    keep_checkpoints: int
    tracking: Literal["none", "tensorboard", "wandb"]

    def __post_init__(self) -> None:
        if self.micro_batch_size < 0:
            raise ValueError(f"micro_batch_size: expected 0 or more, got {self.micro_batch_size}")
        for name in ("num_processes", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
