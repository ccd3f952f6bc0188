"""The parameters in params.yaml as typed, frozen dataclasses.

The dataclass of a section is in the `config.py` of the folder it configures. It has no default values, because
params.yaml is the only place for them. `load` validates the whole file, so a mistake in any section is reported before
a stage starts its work:

    model.norm: expected 'rmsnorm' | 'layernorm' | 'none', got False
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.corpus.config import DataConfig
from lm.errors import UserError
from lm.evaluation.config import EvaluateConfig
from lm.generation.config import SampleConfig
from lm.model.config import ModelConfig
from lm.schema import validate
from lm.studies.config import AblateConfig, SwitchesConfig
from lm.tokenizer.config import TokenizerConfig
from lm.training.config import OptimConfig, RuntimeConfig, TrainConfig
from lm.yaml12 import read_yaml


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
    runtime: RuntimeConfig

    def __post_init__(self) -> None:
        _check_schedule("train", self.train.max_steps, self.optim.warmup_steps, self.optim)
        for name in self.ablate.run:
            switches = self.ablate.variants[name]
            try:
                _check_schedule("ablate", self.ablate.max_steps, self.optim.warmup_steps, switches)
                dataclasses.replace(self.model, **{k: v for k, v in vars(switches).items() if k in vars(self.model)})
                dataclasses.replace(self.train, short_fraction=switches.short_fraction)
            except ValueError as error:
                raise ValueError(f"ablate.variants.{name}: {error}") from None


def _check_schedule(section: str, max_steps: int, warmup_steps: int, schedule: OptimConfig | SwitchesConfig) -> None:
    decay_steps = schedule.decay_steps if schedule.schedule == "wsd" else 0
    if warmup_steps + decay_steps > max_steps:
        raise ValueError(
            f"{section}.max_steps: expected at least the sum of the schedule's warmup_steps and decay_steps, "
            f"{warmup_steps + decay_steps}, got {max_steps}"
        )


def load(path: Path) -> Params:
    """Read and validate a params.yaml.

    Raises:
        UserError: the file cannot be read or is not YAML, a key is unknown or missing, or a value has the wrong type or
            is out of range; the message names the key, what was expected and what was found.
    """
    values = read_yaml(path)
    _complete_variants(values)
    try:
        return validate(Params, values)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _complete_variants(values: Any) -> None:
    """Complete each of `ablate.variants`, which names only the switches it changes, from `ablate.switches`."""
    match values:
        case {"ablate": {"switches": dict(switches), "variants": dict(variants)}}:
            for name, changes in variants.items():
                if isinstance(changes, dict):
                    variants[name] = {**switches, **changes}
