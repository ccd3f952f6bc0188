"""Learning rates as pure functions of the step."""

import math

from lm.training.config import DecayShape, OptimConfig


def cosine(step: int, max_learning_rate: float, min_learning_rate: float, warmup_steps: int, last_step: int) -> float:
    """Linear warm-up from 0, half a cosine down to the minimum at `last_step`, flat after it.

    Loshchilov & Hutter 2017 without restarts, as used for LLaMA (Touvron et al. 2023).

    Example: with maximum 1, minimum 0, 10 steps of warm-up and last step 20, steps 5, 10, 15, 20 have 0.5, 1, 0.5, 0.
    """
    if step < warmup_steps:
        return max_learning_rate * step / warmup_steps
    if step >= last_step:
        return min_learning_rate
    progress = (step - warmup_steps) / (last_step - warmup_steps)
    return min_learning_rate + (max_learning_rate - min_learning_rate) * (1 + math.cos(math.pi * progress)) / 2


def warmup_stable_decay(
    step: int,
    max_learning_rate: float,
    min_learning_rate: float,
    warmup_steps: int,
    decay_steps: int,
    last_step: int,
    decay_shape: DecayShape = "linear",
) -> float:
    """Linear warm-up, the maximum, and a fall to the minimum over the last `decay_steps` (Hu et al. 2024).

    After the part x of its way, the fall has covered x (linear) or sqrt(x) (1-sqrt, Hägele et al. 2024) of its height.

    Example: with maximum 1, minimum 0, 10 steps of warm-up, 4 of decay and last step 20, steps 5, 16, 17, 20 have
    0.5, 1, 0.75, 0 when linear; step 17 has 0.5 with 1-sqrt.
    """
    if step < warmup_steps:
        return max_learning_rate * step / warmup_steps
    if step >= last_step:
        return min_learning_rate
    progress = max(0.0, 1 - (last_step - step) / decay_steps) if decay_steps else 0.0
    fallen = {"linear": progress, "1-sqrt": math.sqrt(progress)}
    return max_learning_rate - (max_learning_rate - min_learning_rate) * fallen[decay_shape]


def learning_rate(step: int, config: OptimConfig, max_steps: int) -> float:
    """The rate of update `step` = 1, ..., max_steps; the last update has the minimum."""
    bounds = config.max_learning_rate, config.min_learning_rate
    if config.schedule == "cosine":
        return cosine(step, *bounds, config.warmup_steps, max_steps)
    return warmup_stable_decay(step, *bounds, config.warmup_steps, config.decay_steps, max_steps, config.decay_shape)
