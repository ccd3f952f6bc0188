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

    `document_mask` keeps the documents of a window from seeing each other.
    """

    max_steps: int
    batch_size: int
    eval_every: int
    seed: int
    precision: Literal["float32", "bfloat16"]
    document_mask: bool
    prompt: str

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected 0 to {2**32 - 1}, got {self.seed}")
        if not self.prompt:
            raise ValueError("prompt: expected some text, got ''")


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """What changes speed and never results beyond rounding; no stage tracks it.

    `micro_batch_size` counts the sequences in memory at once; 0 takes the whole batch. `checkpoint_activations` keeps
    only what enters a block, and computes the rest of it again on the way back.
    """

    device: Literal["auto", "cpu", "cuda", "mps"]
    compile: bool
    attention_backend: AttentionBackend
    micro_batch_size: int
    checkpoint_activations: bool
    checkpoint_every: int

    def __post_init__(self) -> None:
        if self.micro_batch_size < 0:
            raise ValueError(f"micro_batch_size: expected 0 or more, got {self.micro_batch_size}")
        if self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every: expected 1 or more, got {self.checkpoint_every}")
