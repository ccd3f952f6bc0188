"""The sections of params.yaml that describe grids of training runs: `ablate`, `scale` and, in a study, `study`."""

import re
from dataclasses import dataclass
from typing import NamedTuple

from lm.errors import quote
from lm.model.config import FeedForward, ModelConfig, Norm, NormPosition, Position
from lm.schema import check_range
from lm.training.config import (
    MAX_BATCH_SIZE,
    MAX_STEPS,
    DecayShape,
    OptimConfig,
    OptimizerName,
    Precision,
    Schedule,
    TrainConfig,
    Windows,
)


@dataclass(frozen=True, kw_only=True)
class SwitchesConfig:
    """The settings that a variant may change.

    A variant sets all of them, so that no result depends on the settings of the main run. Most have the names and the
    meaning that they have in `model`, `optim` and `train`. `d_head` is the width of a head; a narrower model has one
    head. `decay_fraction` is the share of the steps in the final decay of `schedule: wsd`. The learning rate of
    the grid, or the best one of a sweep, is multiplied by `learning_rate_scale`; `final_learning_rate` is the share of
    it that remains at the end.
    """

    norm: Norm
    norm_position: NormPosition
    position: Position
    qk_norm: bool
    ffn: FeedForward
    canon: bool
    tie_embeddings: bool
    d_head: int
    optimizer: OptimizerName
    cautious_weight_decay: bool
    schedule: Schedule
    decay_fraction: float
    decay_shape: DecayShape
    batch_size: int
    windows: Windows
    short_fraction: float
    document_mask: bool
    learning_rate_scale: float
    final_learning_rate: float

    def __post_init__(self) -> None:
        check_range(self, ("d_head",), 1, 2**20)
        check_range(self, ("batch_size",), 1, MAX_BATCH_SIZE)
        for name in ("decay_fraction", "short_fraction", "final_learning_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)}")
        if self.learning_rate_scale <= 0:
            raise ValueError(f"learning_rate_scale: expected a positive number, got {self.learning_rate_scale}")


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """The settings that all runs of a grid have in common: those that no variant changes.

    They have the names and the meaning that they have in `model`, `optim` and `train`.
    """

    context_length: int
    rope_theta: float
    warmup_steps: int
    weight_decay: float
    momentum: float
    beta1: float
    beta2: float
    eps: float
    max_grad_norm: float
    precision: Precision
    short_context_length: int
    prompt: str

    def __post_init__(self) -> None:
        check_range(self, ("context_length",), 1, 2**24)


def common_settings(model: ModelConfig, optim: OptimConfig, train: TrainConfig) -> CommonConfig:
    """The settings that the grids of the pipeline take from its other sections."""
    return CommonConfig(
        context_length=model.context_length,
        rope_theta=model.rope_theta,
        warmup_steps=optim.warmup_steps,
        weight_decay=optim.weight_decay,
        momentum=optim.momentum,
        beta1=optim.beta1,
        beta2=optim.beta2,
        eps=optim.eps,
        max_grad_norm=optim.max_grad_norm,
        precision=train.precision,
        short_context_length=train.short_context_length,
        prompt=train.prompt,
    )


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """A grid of training runs: every point with every seed.

    A point is the size of a model and the number of training tokens: `64x2-400000` means the width 64, 2 layers, and
    400,000 tokens. Every run is evaluated `num_evaluations` times after its start.
    """

    points: list[str]
    seeds: list[int]
    num_evaluations: int

    def __post_init__(self) -> None:
        check_list("seeds", self.seeds)
        check_points(self.points)
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise ValueError(f"seeds: expected 0 to {2**32 - 1}, got {seed}")
        check_range(self, ("num_evaluations",), 1, MAX_STEPS)


@dataclass(frozen=True, kw_only=True)
class VariantsConfig(GridConfig):
    """A grid for every variant in `run`, the first of which is the baseline.

    In params.yaml, a variant lists only the `switches` that it changes; here, every variant is complete.
    """

    run: list[str]
    switches: SwitchesConfig
    variants: dict[str, SwitchesConfig]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_list("run", self.run)
        if unknown := [name for name in self.run if name not in self.variants]:
            raise ValueError(f"run: expected names from variants ({', '.join(self.variants)}), got {quote(unknown[0])}")
        for name in self.variants:
            # The name becomes part of a stage's name, a key, a file name and an argument.
            if not re.fullmatch(r"[A-Za-z0-9][\w-]{,99}", name, re.ASCII):
                raise ValueError(
                    "variants: expected names of at most 100 letters, digits, _ and -, the first a letter or a digit, "
                    f"got {quote(name)}"
                )


@dataclass(frozen=True, kw_only=True)
class AblateConfig(VariantsConfig):
    """A grid for every variant, all at the same learning rate."""

    learning_rate: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_learning_rate("learning_rate", self.learning_rate)


@dataclass(frozen=True, kw_only=True)
class ScaleConfig(GridConfig):
    """A grid for one of the variants in `ablate.variants`."""

    variant: str
    learning_rate: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_learning_rate("learning_rate", self.learning_rate)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid with everything that its runs need: the names of its variants, all definitions, and common settings."""

    axes: GridConfig
    run: list[str]
    variants: dict[str, SwitchesConfig]
    common: CommonConfig


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The learning rates that are tried for every variant of a study, each at every one of `points`."""

    learning_rates: list[float]
    points: list[str]

    def __post_init__(self) -> None:
        check_list("learning_rates", self.learning_rates)
        check_points(self.points)
        for rate in self.learning_rates:
            check_learning_rate("learning_rates", rate)


@dataclass(frozen=True, kw_only=True)
class StudyConfig(VariantsConfig):
    """The question of a study: a grid for every variant, each at its best learning rate of a sweep."""

    common: CommonConfig
    sweep: SweepConfig


class Point(NamedTuple):
    """The size of a model, and the number of tokens that it is trained on."""

    d_model: int
    num_layers: int
    tokens: int

    @property
    def size(self) -> str:
        return f"{self.d_model}x{self.num_layers}"


def parse_point(point: str) -> Point:
    """Read a point.

    Example: "64x2-400000" gives (64, 2, 400000).

    Raises:
        ValueError: it is not such a text.
    """
    match = re.fullmatch(r"([1-9]\d{,6})x([1-9]\d{,4})-([1-9]\d{,14})", point, re.ASCII)
    if not match:
        raise ValueError(
            f"points: expected width x number of layers - number of tokens, such as 64x2-400000, got {quote(point)}"
        )
    return Point(int(match[1]), int(match[2]), int(match[3]))


def check_points(points: list[str]) -> None:
    check_list("points", points)
    for point in points:
        parse_point(point)


def check_list(name: str, values: list[str] | list[int] | list[float]) -> None:
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name}: expected at least one entry and no duplicates, got {quote(values)}")


def check_learning_rate(name: str, rate: float) -> None:
    """Raise ValueError unless 0 < rate < 1.

    A whole number would not do: in the names of stages and files, DVC would write 1 where Python writes 1.0.
    """
    if not 0 < rate < 1:
        raise ValueError(f"{name}: expected more than 0 and less than 1, got {rate}")
