"""Ablations: one switch of the model changed at a time, everything else equal, over several seeds."""

import dataclasses

from lm.config import Params
from lm.training.loop import Run


def cell(params: Params, variant: str, seed: int) -> Run:
    """The run of one cell: the sizes of `model`, the variant's switches, the seed, and the shorter training."""
    switches = dataclasses.asdict(params.ablate.variants[variant])
    scale = switches.pop("learning_rate_scale")
    optim = dataclasses.replace(
        params.optim,
        max_learning_rate=params.optim.max_learning_rate * scale,
        min_learning_rate=params.optim.min_learning_rate * scale,
    )
    train = dataclasses.replace(
        params.train,
        seed=seed,
        max_steps=params.ablate.max_steps,
        batch_size=params.ablate.batch_size,
        eval_every=params.ablate.eval_every,
    )
    return Run(model=dataclasses.replace(params.model, **switches), optim=optim, train=train)
