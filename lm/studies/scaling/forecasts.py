"""Forecasts of runs that a fit has not seen, to compare with what was measured."""

import math
from dataclasses import dataclass

import numpy as np

from lm.studies.scaling.law import Law, UndeterminedError, fit
from lm.studies.scaling.runs import Runs

_HELD_OUT = 5  # one in so many cells


@dataclass(frozen=True)
class Forecast:
    """A law that was fitted to some `runs`, and the `future` runs that it predicts."""

    law: Law
    runs: Runs
    future: Runs

    @property
    def predicted(self) -> np.ndarray:
        return np.asarray(self.law.loss(self.future.parameters, self.future.tokens))

    @property
    def errors(self) -> np.ndarray:
        """Predicted loss minus loss (n,)."""
        return self.predicted - self.future.loss

    @property
    def relative_errors(self) -> np.ndarray:
        """The errors as shares of the loss."""
        return self.errors / self.future.loss

    @property
    def mean_absolute_relative_error(self) -> float:
        """The mean absolute error, where each error is a share of the loss."""
        return float(np.mean(np.abs(self.relative_errors)))


def most_expensive(runs: Runs) -> np.ndarray:
    """Whether each run (n,) belongs to the fifth of the cells with the most FLOPs, rounded up."""
    cells = runs.cells()
    flops = np.array([runs.flops[cells == cell].mean() for cell in np.unique(cells)])
    largest = np.argsort(flops, kind="stable")[len(flops) - math.ceil(len(flops) / _HELD_OUT) :]
    return np.isin(cells, largest)


def forecast(runs: Runs, is_future: np.ndarray, irreducible: float | None) -> Forecast:
    """Predict the runs where `is_future` (n,) is True from all others.

    Raises:
        UndeterminedError: the others do not determine a law.
    """
    past = runs.select(~is_future)
    law = fit(past.parameters, past.tokens, past.loss, irreducible).law
    return Forecast(law, past, runs.select(is_future))


def rolling(runs: Runs, irreducible: float | None) -> list[Forecast]:
    """Predict the runs of each size from those of all smaller sizes, for the sizes where these determine a law."""
    forecasts = []
    for size in np.unique(runs.parameters):
        seen = runs.select(runs.parameters <= size)
        try:
            forecasts.append(forecast(seen, seen.parameters == size, irreducible))
        except UndeterminedError:
            continue  # too few smaller sizes
    return forecasts
