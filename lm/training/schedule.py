"""Learning-rate schedules as pure functions of the step."""

import math

from lm.training.config import DecayShape, OptimConfig


def cosine(step: int, max_learning_rate: float, min_learning_rate: float, warmup_steps: int, last_step: int) -> float:
    """Linear warmup from 0, then half a period of a cosine down to the minimum at `last_step`, then constant.

    The schedule of Loshchilov & Hutter 2017 without restarts, as used for LLaMA (Touvron et al. 2023).

    Example: with maximum 1, minimum 0, 10 warmup steps and last step 20, the rates of steps 5, 10, 15 and 20 are 0.5,
    1, 0.5 and 0.
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
    """Linear warmup, then the maximum, then a decay to the minimum over the last `decay_steps` (Hu et al. 2024).

    After a fraction x of the decay steps, the rate has fallen by a fraction x of the total (`linear`), or by a fraction
    sqrt(x) (`1-sqrt`, Hägele et al. 2024).

    Example: with maximum 1, minimum 0, 10 warmup steps, 4 decay steps and last step 20, the linear rates of steps 5,
    16, 17 and 20 are 0.5, 1, 0.75 and 0; with 1-sqrt, the rate of step 17 is 0.5.
    """
    if step < warmup_steps:
        return max_learning_rate * step / warmup_steps
    if step >= last_step:
        return min_learning_rate
    progress = max(0.0, 1 - (last_step - step) / decay_steps) if decay_steps else 0.0
    fraction = {"linear": progress, "1-sqrt": math.sqrt(progress)}
    return max_learning_rate - (max_learning_rate - min_learning_rate) * fraction[decay_shape]


def learning_rate(step: int, config: OptimConfig, max_steps: int) -> float:
    """The learning rate of training step `step` = 1, ..., max_steps; the last step has the minimum."""
    bounds = config.max_learning_rate, config.min_learning_rate
    if config.schedule == "cosine":
        return cosine(step, *bounds, config.warmup_steps, max_steps)
    return warmup_stable_decay(step, *bounds, config.warmup_steps, config.decay_steps, max_steps, config.decay_shape)
