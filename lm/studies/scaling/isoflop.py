"""The best size for a number of FLOPs, without assuming the law (Hoffmann et al. 2022, section 3.2).

Among runs with about the same FLOPs, the loss over log N is about a parabola; its minimum is the compute-optimal size.
Over several levels of FLOPs, the optimum grows as a power of the FLOPs.
"""

from dataclasses import dataclass

import numpy as np

from lm.studies.scaling.law import Law
from lm.studies.scaling.runs import Runs

# Runs whose FLOPs differ by a smaller factor share a level: where tokens double, every size has one run per level.
SPREAD = 2.0

_MIN_SIZES = 3  # for a parabola


@dataclass(frozen=True)
class IsoFlop:
    """Runs with about the same FLOPs.

    Attributes:
        flops: The geometric mean of their FLOPs.
        parameters: Their sizes (n,).
        loss: Their losses (n,), moved to `flops`.
        coefficients: The parabola in log N, highest power first; None for fewer than three sizes.
        optimum: The size at its minimum; None if that is not between the smallest and the largest size.
    """

    flops: float
    parameters: np.ndarray
    loss: np.ndarray
    coefficients: np.ndarray | None
    optimum: float | None

    @property
    def verdict(self) -> str:
        """The optimum, or why there is none, in words."""
        if self.optimum is not None:
            return f"{self.optimum:,.0f}"
        sizes = np.unique(self.parameters)
        if self.coefficients is None:
            return f"too few runs: {len(sizes)} size{'s' * (len(sizes) > 1)}, a parabola needs {_MIN_SIZES}"
        best = self.parameters[np.argmin(self.loss)]
        end = "smallest" if best == sizes[0] else "largest" if best == sizes[-1] else ""
        return f"no minimum between the sizes{f': the {end} is best' if end else ''}"


def isoflops(runs: Runs, law: Law) -> list[IsoFlop]:
    """Group the runs by their FLOPs, and fit a parabola to each group.

    A group begins with the run that has the fewest FLOPs of those that are left, and takes all with less than `SPREAD`
    times as many. The small difference in FLOPs that remains is removed with the law: it says by which factor the loss
    changes when the tokens are scaled to the group's mean FLOPs.
    """
    groups = []
    order = np.argsort(runs.flops, kind="stable")
    while len(order):
        is_near = runs.flops[order] < SPREAD * runs.flops[order[0]] * (1 - 1e-9)
        groups.append(_isoflop(runs.select(order[is_near]), law))
        order = order[~is_near]
    return groups


def _isoflop(runs: Runs, law: Law) -> IsoFlop:
    flops = float(np.exp(np.log(runs.flops).mean()))
    moved_tokens = runs.tokens * flops / runs.flops
    loss = runs.loss * law.loss(runs.parameters, moved_tokens) / law.loss(runs.parameters, runs.tokens)
    log_sizes = np.log(runs.parameters)
    if len(np.unique(runs.parameters)) < _MIN_SIZES:
        return IsoFlop(flops, runs.parameters, loss, None, None)
    center = log_sizes.mean()
    a, b, c = np.polyfit(log_sizes - center, loss, 2)
    coefficients = np.array([a, b - 2 * a * center, c - b * center + a * center**2])
    minimum = center - b / (2 * a) if a > 0 else np.inf
    is_interior = log_sizes.min() < minimum < log_sizes.max()
    return IsoFlop(flops, runs.parameters, loss, coefficients, float(np.exp(minimum)) if is_interior else None)


def exponent(groups: list[IsoFlop]) -> float | None:
    """The power of the FLOPs with which the optimal size grows; None if fewer than two groups have an optimum."""
    points = [(group.flops, group.optimum) for group in groups if group.optimum is not None]
    if len(points) < 2:
        return None
    flops, sizes = np.log(points).T
    return float(np.polyfit(flops, sizes, 1)[0])
