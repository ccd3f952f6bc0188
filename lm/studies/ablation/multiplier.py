"""The compute multiplier: how much less compute a variant needs to reach the baseline's loss.

Runs of the variant with several numbers of tokens give its excess loss as a function of compute. On logarithmic axes
the points are joined by straight lines, as a power law is one. Where they reach the loss of the baseline's longest
runs, they say how much compute the variant needs:

    multiplier = compute of the baseline's longest run / compute of the variant for the same loss

A multiplier of 1.3 means that the baseline needs 1.3 times the compute of the variant; below 1, the variant needs more.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from lm.studies.ablation.comparison import paired_difference

# The last segment is extended to at most this multiple of the variant's largest compute.
MAX_EXTENSION = 4.0

Bound = Literal["", "less than", "more than"]


@dataclass(frozen=True)
class Multiplier:
    """A compute multiplier.

    Attributes:
        value: The geometric mean over the seeds.
        low: The lower end of its 95% t-interval, computed on the logarithm; NaN for one seed and for a bound.
        high: The upper end.
        bound: Empty, or the side of `value` on which the multiplier lies.
        is_extrapolated: Whether, for some seed, the loss is reached only beyond the variant's own runs.
    """

    value: float
    low: float
    high: float
    bound: Bound
    is_extrapolated: bool


@dataclass(frozen=True)
class _Reach:
    """The compute at which a variant reaches a loss; with a bound, the multiplier lies on that side."""

    compute: float
    bound: Bound = ""
    is_extrapolated: bool = False


def multiplier(baseline: pd.DataFrame, variant: pd.DataFrame, cost: str = "flops") -> Multiplier | None:
    """The compute multiplier of a variant, seed by seed, at the baseline's loss at its largest number of tokens.

    The excess is the loss minus the floor, or the loss itself where the floor is unknown. It is interpolated linearly,
    its logarithm over that of the cost. Where the loss goes up and down, the first point counts at which the baseline's
    loss is reached. Beyond the variant's longest run, the last segment is extended to at most four times its cost; a
    variant that does not reach the loss there has a multiplier that is less than `value`. Below its shortest run
    nothing is assumed: a variant that is already better there has a multiplier that is more than `value`.

    Args:
        baseline: Runs of one size with several numbers of tokens, with the columns `tokens`, `seed`, `loss` (NaN for a
            run that diverged), `floor` and `cost`.
        variant: Runs of the variant at the same size.
        cost: The column with the cost of a run, such as `flops` or `seconds`.

    Returns:
        None if it cannot be computed: no seed has one of the baseline's longest runs and two or more runs of the
        variant, a run that is needed diverged or has a loss that is not above the floor, or some seeds are only known
        to be more, and others only to be less.

    Example: with a floor of 0, the baseline reaches 0.5 with 4e9 FLOPs, and the variant 0.6 with 1e9 and 0.4 with 4e9.
    The variant reaches 0.5 with 1.87e9 FLOPs, so its multiplier is 2.14.
    """
    targets = baseline[baseline["tokens"] == baseline["tokens"].max()]
    logs, reaches = [], []
    for _, target in targets.iterrows():
        runs = variant[variant["seed"] == target["seed"]].sort_values(cost)
        if len(runs) < 2:
            continue
        floor = 0.0 if math.isnan(target["floor"]) else target["floor"]
        excess = np.append(runs["loss"], target["loss"]) - floor
        costs = np.append(runs[cost], target[cost])
        if not (excess > 0).all() or not (costs > 0).all():  # also False for NaN
            return None
        reach = _reach(costs[:-1], excess[:-1], float(excess[-1]))
        reaches.append(reach)
        logs.append(math.log(costs[-1] / reach.compute))
    bounds: set[Bound] = {reach.bound for reach in reaches} - {""}
    if not logs or len(bounds) > 1:
        return None
    mean = paired_difference(np.array(logs))
    is_bound = bool(bounds)
    return Multiplier(
        value=math.exp(mean.mean),
        low=math.nan if is_bound else math.exp(mean.low),
        high=math.nan if is_bound else math.exp(mean.high),
        bound=bounds.pop() if bounds else "",
        is_extrapolated=any(reach.is_extrapolated for reach in reaches),
    )


def _reach(costs: np.ndarray, excess: np.ndarray, target: float) -> _Reach:
    """The cost at which a piecewise power law through the points (N >= 2, costs ascending) reaches `target`."""
    x, y, goal = np.log(costs), np.log(excess), math.log(target)
    if y[0] <= goal:
        return _Reach(float(costs[0]), "more than" if y[0] < goal else "")
    for i in range(len(x) - 1):
        if y[i + 1] <= goal:
            share = (y[i] - goal) / (y[i] - y[i + 1])
            return _Reach(math.exp(x[i] + share * (x[i + 1] - x[i])))
    limit = x[-1] + math.log(MAX_EXTENSION)
    # Two runs may have cost the same, if the cost is a measured time.
    slope = (y[-1] - y[-2]) / (x[-1] - x[-2]) if x[-1] > x[-2] else 0.0
    if y[-1] + slope * (limit - x[-1]) > goal:
        return _Reach(math.exp(limit), "less than", is_extrapolated=True)
    return _Reach(math.exp(x[-1] + (goal - y[-1]) / slope), is_extrapolated=True)
