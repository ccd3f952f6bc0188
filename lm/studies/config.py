"""The section `ablate` of params.yaml: the variants to compare, and how long each is trained."""

import re
from dataclasses import dataclass

from lm.errors import quote
from lm.model.config import FeedForward, Norm, NormPosition, Position
from lm.schema import check_range
from lm.training.config import MAX_BATCH_SIZE, MAX_STEPS, DecayShape, OptimizerName, Schedule, Windows


@dataclass(frozen=True, kw_only=True)
class SwitchesConfig:
    """The settings that a variant may change.

    A variant sets all of them, so that no row of the ablation table depends on the settings of the main run. They have
    the names and the meaning that they have in `model`, `optim` and `train`. The learning rates are those of `optim`,
    multiplied by `learning_rate_scale`.
    """

    norm: Norm
    norm_position: NormPosition
    position: Position
    qk_norm: bool
    ffn: FeedForward
    tie_embeddings: bool
    optimizer: OptimizerName
    schedule: Schedule
    decay_steps: int
    decay_shape: DecayShape
    windows: Windows
    short_fraction: float
    document_mask: bool
    learning_rate_scale: float

    def __post_init__(self) -> None:
        if self.learning_rate_scale <= 0:
            raise ValueError(f"learning_rate_scale: expected a positive number, got {self.learning_rate_scale}")
        check_range(self, ("decay_steps",), 0, MAX_STEPS)


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """The variants to train (`run`, the first of which is the baseline), the seeds, and a training that is shorter.

    In params.yaml, a variant lists only the `switches` that it changes; here, every variant is complete.
    """

    run: list[str]
    seeds: list[int]
    max_steps: int
    batch_size: int
    eval_every: int
    switches: SwitchesConfig
    variants: dict[str, SwitchesConfig]

    def __post_init__(self) -> None:
        for name in ("run", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}: expected at least one entry and no duplicates, got {quote(values)}")
        if unknown := [name for name in self.run if name not in self.variants]:
            raise ValueError(f"run: expected names from variants ({', '.join(self.variants)}), got {quote(unknown[0])}")
        for name in self.variants:
            # The name becomes part of a stage's name, a key, a file name and an argument.
            if not re.fullmatch(r"[A-Za-z0-9][\w-]{,99}", name, re.ASCII):
                raise ValueError(
                    "variants: expected names of at most 100 letters, digits, _ and -, the first a letter or a digit, "
                    f"got {quote(name)}"
                )
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise ValueError(f"seeds: expected 0 to {2**32 - 1}, got {seed}")
        check_range(self, ("max_steps", "eval_every"), 1, MAX_STEPS)
        check_range(self, ("batch_size",), 1, MAX_BATCH_SIZE)
