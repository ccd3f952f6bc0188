"""Ablations: runs that differ in one switch, with everything else equal, repeated over several seeds."""

import dataclasses
from typing import Any

from lm.errors import UserError
from lm.studies.config import AblateConfig
from lm.training.config import RunConfig


def cell(base: RunConfig, ablate: AblateConfig, variant: str, seed: int) -> RunConfig:
    """The configuration of one cell of the ablation: `base` with the values of `overrides`.

    Raises:
        UserError: the variant does not fit the other values of `base`, or the seed is out of range.
    """
    changes = overrides(base, ablate, variant, seed)
    try:
        return RunConfig(
            model=dataclasses.replace(base.model, **changes["model"]),
            optim=dataclasses.replace(base.optim, **changes["optim"]),
            train=dataclasses.replace(base.train, **changes["train"]),
        )
    except ValueError as error:
        raise UserError(f"the cell {variant}, {seed}: {error}") from error


def overrides(base: RunConfig, ablate: AblateConfig, variant: str, seed: int) -> dict[str, dict[str, Any]]:
    """The values that a cell does not take from `base`, by section: the variant's switches, the seed, a shorter run.

    The learning rates are those of `base`, scaled.
    """
    switches = ablate.variants[variant]
    return {
        "model": {
            "norm": switches.norm,
            "norm_position": switches.norm_position,
            "position": switches.position,
            "qk_norm": switches.qk_norm,
            "ffn": switches.ffn,
            "tie_embeddings": switches.tie_embeddings,
        },
        "optim": {
            "optimizer": switches.optimizer,
            "schedule": switches.schedule,
            "decay_steps": switches.decay_steps,
            "decay_shape": switches.decay_shape,
            "max_learning_rate": base.optim.max_learning_rate * switches.learning_rate_scale,
            "min_learning_rate": base.optim.min_learning_rate * switches.learning_rate_scale,
        },
        "train": {
            "seed": seed,
            "max_steps": ablate.max_steps,
            "batch_size": ablate.batch_size,
            "eval_every": ablate.eval_every,
            "windows": switches.windows,
            "short_fraction": switches.short_fraction,
            "document_mask": switches.document_mask,
            "max_skipped_steps": 0,
            "initial_model": "none",
        },
    }
