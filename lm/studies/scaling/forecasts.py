"""Forecasts of runs that a fit has not seen, to compare with what was measured."""

import math
from dataclasses import dataclass

import numpy as np

from lm.errors import UserError
from lm.studies.scaling.law import Law, fit
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
    def mean_relative_error(self) -> float:
        """The mean of the relative errors without their signs."""
        return float(np.mean(np.abs(self.relative_errors)))


def held_out(runs: Runs, irreducible: float | None) -> Forecast:
    """Predict the fifth of the cells with the most FLOPs, rounded up, from all others.

    Raises:
        UserError: the others do not determine a law.
    """
    cells = runs.cells()
    flops = np.array([runs.flops[cells == cell].mean() for cell in range(int(cells.max()) + 1)])
    largest = np.argsort(flops, kind="stable")[len(flops) - math.ceil(len(flops) / _HELD_OUT) :]
    return _forecast(runs, np.isin(cells, largest), irreducible)


def rolling(runs: Runs, irreducible: float | None) -> list[Forecast]:
    """Predict the runs of each size from those of all smaller sizes, for the sizes where these determine a law."""
    forecasts = []
    for size in np.unique(runs.parameters):
        seen = runs.select(runs.parameters <= size)
        try:
            forecasts.append(_forecast(seen, seen.parameters == size, irreducible))
        except UserError:
            continue  # too few smaller sizes
    return forecasts


def _forecast(runs: Runs, is_future: np.ndarray, irreducible: float | None) -> Forecast:
    past = runs.select(~is_future)
    law = fit(past.parameters, past.tokens, past.loss, irreducible).law
    return Forecast(law, past, runs.select(is_future))
