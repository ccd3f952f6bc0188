"""Ablations: one switch changed at a time, everything else equal, over several seeds."""

import dataclasses

from lm.config import Params
from lm.errors import UserError
from lm.training.loop import RunConfig


def cell(params: Params, variant: str, seed: int) -> RunConfig:
    """The run of one cell: the sizes of `model`, the variant's switches, the seed, and the shorter training.

    Raises:
        UserError: the variant and `model` do not fit together, or the seed is out of range.
    """
    try:
        switches = params.ablate.variants[variant]
        model = dataclasses.replace(
            params.model,
            norm=switches.norm,
            norm_position=switches.norm_position,
            position=switches.position,
            qk_norm=switches.qk_norm,
            ffn=switches.ffn,
            tie_embeddings=switches.tie_embeddings,
        )
        optim = dataclasses.replace(
            params.optim,
            name=switches.optimizer,
            schedule=switches.schedule,
            decay_steps=switches.decay_steps,
            decay_shape=switches.decay_shape,
            max_learning_rate=params.optim.max_learning_rate * switches.learning_rate_scale,
            min_learning_rate=params.optim.min_learning_rate * switches.learning_rate_scale,
        )
        train = dataclasses.replace(
            params.train,
            seed=seed,
            max_steps=params.ablate.max_steps,
            batch_size=params.ablate.batch_size,
            eval_every=params.ablate.eval_every,
            document_mask=switches.document_mask,
            max_skipped_steps=0,
            initial_model="none",
        )
    except ValueError as error:
        raise UserError(f"the cell {variant}, {seed}: {error}") from error
    return RunConfig(model=model, optim=optim, train=train)
