"""The parameters in params.yaml as typed, frozen dataclasses.

The dataclass of a section is in the `config.py` of the folder it configures. It has no default values, because
params.yaml is the only place for them. `load` validates the whole file, so a mistake in any section is reported before
a stage starts its work:

    model.norm: expected 'rmsnorm' | 'layernorm' | 'none', got False
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lm.corpus.config import DataConfig
from lm.errors import UserError, quote
from lm.evaluation.config import EvaluateConfig
from lm.generation.config import SampleConfig
from lm.model.config import ModelConfig
from lm.schema import validate
from lm.studies.cell import Cell, configure
from lm.studies.config import AblateConfig, Grid, ScaleConfig, StudyConfig, common_settings
from lm.tokenizer.config import TokenizerConfig
from lm.training.config import OptimConfig, RuntimeConfig, TrainConfig
from lm.yaml12 import read_yaml

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StudyParams:
    """The contents of studies/NAME/params.yaml, one field per section.

    Raises:
        ValueError: a cell of the study cannot be trained; the message starts with the key.
    """

    data: DataConfig
    tokenizer: TokenizerConfig
    study: StudyConfig
    runtime: RuntimeConfig

    def __post_init__(self) -> None:
        _check_cells(self, "study", [*self.study.points, *self.study.sweep.points])


@dataclass(frozen=True, kw_only=True)
class Params:
    """The contents of params.yaml, one field per section.

    Raises:
        ValueError: sections contradict each other; the message starts with the key.
    """

    data: DataConfig
    tokenizer: TokenizerConfig
    model: ModelConfig
    optim: OptimConfig
    train: TrainConfig
    sample: SampleConfig
    evaluate: EvaluateConfig
    ablate: AblateConfig
    scale: ScaleConfig
    runtime: RuntimeConfig

    def __post_init__(self) -> None:
        decay_steps = self.optim.decay_steps if self.optim.schedule == "wsd" else 0
        least = self.optim.warmup_steps + decay_steps
        if self.train.max_steps < least:
            raise ValueError(
                "train.max_steps: expected at least the sum of the schedule's warmup_steps and decay_steps, "
                f"{least}, got {self.train.max_steps}"
            )
        if self.scale.variant not in self.ablate.variants:
            raise ValueError(
                f"scale.variant: expected one of ablate.variants ({', '.join(self.ablate.variants)}), "
                f"got {quote(self.scale.variant)}"
            )
        _check_cells(self, "ablate", self.ablate.points)
        _check_cells(self, "scale", self.scale.points)


def grid(params: Params | StudyParams, section: str) -> Grid:
    """The grid that the section `ablate`, `scale` or `study` describes.

    Raises:
        UserError: the parameters have no such section.
    """
    match section, params:
        case "study", StudyParams(study=study):
            return Grid(axes=study, run=study.run, variants=study.variants, common=study.common)
        case "ablate" | "scale", Params(ablate=ablate, scale=scale):
            common = common_settings(params.model, params.optim, params.train)
            axes, run = (ablate, ablate.run) if section == "ablate" else (scale, [scale.variant])
            return Grid(axes=axes, run=run, variants=ablate.variants, common=common)
        case _:
            raise UserError(f"--section: the parameters have no section {section}")


def _check_cells(params: Params | StudyParams, section: str, points: list[str]) -> None:
    """Raise ValueError if a variant of a grid cannot be trained at one of `points`."""
    checked = grid(params, section)
    for variant, point in itertools.product(checked.run, points):
        try:
            configure(checked, Cell(variant=variant, point=point, seed=checked.axes.seeds[0]), learning_rate=1.0)
        except UserError as error:
            raise ValueError(f"{section}: {error}") from None


def load(path: Path) -> Params:
    """Read and validate the params.yaml of the pipeline.

    Raises:
        UserError: the file cannot be read or is not YAML, a key is unknown or missing, or a value has the wrong type or
            is out of range; the message names the key, what was expected and what was found.
    """
    return _validate(path, Params, _read(path))


def load_study(path: Path) -> StudyParams:
    """Read and validate the params.yaml of a study; the errors are those of `load`."""
    return _validate(path, StudyParams, _read(path))


def load_any(path: Path) -> Params | StudyParams:
    """Read and validate a params.yaml: that of a study if it has a section `study`. The errors are those of `load`."""
    values = _read(path)
    is_study = isinstance(values, dict) and "study" in values
    return _validate(path, StudyParams, values) if is_study else _validate(path, Params, values)


def _read(path: Path) -> Any:
    """The values in the file. Variants, which name only the switches that they change, are completed."""
    values = read_yaml(path)
    match values:
        case {"ablate": {"switches": dict(switches), "variants": dict(variants)}} | {
            "study": {"switches": dict(switches), "variants": dict(variants)}
        }:
            for name, changes in variants.items():
                if isinstance(changes, dict):
                    variants[name] = {**switches, **changes}
    return values


def _validate(path: Path, kind: type[T], values: Any) -> T:
    try:
        return validate(kind, values)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
