"""Everything that is known about the scaling of some runs: the fit, its intervals, and its forecasts."""

import math
from dataclasses import dataclass

import numpy as np

from lm.studies.scaling.bootstrap import Interval, bootstrap, interval, intervals
from lm.studies.scaling.forecasts import Forecast, forecast, rolling
from lm.studies.scaling.isoflop import IsoFlop, isoflops
from lm.studies.scaling.law import Fit, Law, UndeterminedError, fit
from lm.studies.scaling.runs import Runs

_SMALLEST = 0.01  # of the lowest loss; a smaller E is none
_NORMAL_QUANTILE = 1.959964
_NARROWEST = 1e-6  # the width of an interval, relative to its upper end, below which there is no standard error


@dataclass(frozen=True)
class Analysis:
    """A fit and what follows from it.

    Attributes:
        runs: The runs of the fit.
        irreducible: The value that E was fixed at, or None if it was fitted.
        fit: The law and its objective.
        laws: The fits of the bootstrap's samples.
        held_out: The forecast of the runs that were held out, or the reason why there is none.
        isoflops: The minima of the runs with about the same FLOPs.
    """

    runs: Runs
    irreducible: float | None
    fit: Fit
    laws: list[Law]
    held_out: Forecast | str
    isoflops: list[IsoFlop]

    @property
    def intervals(self) -> dict[str, Interval]:
        """The 95% intervals of A, B, E, alpha and beta."""
        return intervals(self.laws)

    @property
    def optimum_exponent(self) -> float:
        """The power of the FLOPs with which the compute-optimal size grows, beta / (alpha + beta)."""
        return self.fit.law.beta / (self.fit.law.alpha + self.fit.law.beta)

    @property
    def optimum_exponent_interval(self) -> Interval:
        return interval(law.beta / (law.alpha + law.beta) for law in self.laws)

    def rolling(self) -> list[Forecast]:
        """The forecasts of each size from the smaller ones, each with a fit of its own."""
        return rolling(self.runs, self.irreducible)

    @property
    def needs_no_irreducible_loss(self) -> bool:
        """Whether the fits of nearly all samples have an E close to 0: then the runs do not determine it."""
        return self.irreducible is None and is_negligible(self.intervals["E"], self.runs.loss)

    def standard_errors_from(self, entropy: float) -> float:
        """The difference E - `entropy`, divided by the standard error of a normal distribution with E's interval.

        NaN if the interval has no width, because the runs have no noise or the fits of nearly all samples need no E.

        Example: E 0.7 with the interval 0.502 to 0.898 has the standard error 0.101, and is 2 of them from 0.498.
        """
        low, high = self.intervals["E"]
        # Without a need for E, the search ends at some value that is close to zero, which says nothing.
        if self.needs_no_irreducible_loss or high - low < _NARROWEST * high:
            return math.nan
        return (self.fit.law.E - entropy) / ((high - low) / (2 * _NORMAL_QUANTILE))


def is_negligible(interval: Interval, loss: np.ndarray) -> bool:
    """Whether the interval of a fitted E ends close to 0, compared with the losses (n,) of the runs."""
    return interval[1] < _SMALLEST * float(loss.min())


def analyze(runs: Runs, irreducible: float | None, bootstraps: int, is_held_out: np.ndarray) -> Analysis:
    """Fit the law to the runs, with E fixed at `irreducible` if that is known.

    Args:
        bootstraps: The number of samples for the intervals.
        is_held_out: Which runs (n,) another fit predicts from all others, such as `most_expensive(runs)`.

    Raises:
        UndeterminedError: the runs do not determine the law.
        UserError: `irreducible` is not below the losses.
    """
    result = fit(runs.parameters, runs.tokens, runs.loss, irreducible)
    laws = bootstrap(runs, result.law, irreducible, bootstraps)
    held_out: Forecast | str
    try:
        held_out = forecast(runs, is_held_out, irreducible)
    except UndeterminedError as error:
        held_out = str(error)
    return Analysis(runs, irreducible, result, laws, held_out, isoflops(runs, result.law))
