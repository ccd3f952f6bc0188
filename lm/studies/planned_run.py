"""The file that describes a planned run; `lm.studies.plan` writes it, and the stage that trains the run reads it."""

from dataclasses import dataclass
from pathlib import Path

from lm.model.config import ModelConfig
from lm.schema import read_json
from lm.training.config import OptimConfig, RunConfig, TrainConfig

ADVICE = "make it with: dvc repro, or lm cells"


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """The content of a file: the configuration of a run, and the hash of the code that trains it."""

    code: str
    model: ModelConfig
    optim: OptimConfig
    train: TrainConfig


def read_planned_run(path: Path) -> RunConfig:
    """Read the configuration of a run.

    Raises:
        UserError: the file is missing or damaged.
    """
    planned = read_json(path, PlannedRun, ADVICE)
    return RunConfig(model=planned.model, optim=planned.optim, train=planned.train)
