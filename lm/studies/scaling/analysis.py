"""Everything that is known about the scaling of some runs: the fit, its intervals, and its forecasts."""

from dataclasses import dataclass

from lm.errors import UserError
from lm.studies.scaling.bootstrap import Interval, bootstrap, interval, intervals
from lm.studies.scaling.forecasts import Forecast, held_out, rolling
from lm.studies.scaling.isoflop import Budget, budgets
from lm.studies.scaling.law import Fit, Law, fit
from lm.studies.scaling.runs import Runs

_NORMAL_QUANTILE = 1.959964


@dataclass(frozen=True)
class Analysis:
    """A fit and what follows from it.

    Attributes:
        runs: The runs of the fit.
        irreducible: The value that E was fixed at, or None if it was fitted.
        fit: The law and its objective.
        laws: The fits of the bootstrap's samples.
        held_out: The forecast of the most expensive runs, or the reason why there is none.
        budgets: The minima of the runs with equal FLOPs.
    """

    runs: Runs
    irreducible: float | None
    fit: Fit
    laws: list[Law]
    held_out: Forecast | str
    budgets: list[Budget]

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

    def standard_errors_from(self, truth: float) -> float:
        """E minus its true value, in standard errors; these are those of a normal distribution with E's interval."""
        low, high = self.intervals["E"]
        return (self.fit.law.E - truth) / max((high - low) / (2 * _NORMAL_QUANTILE), 1e-300)


def analyze(runs: Runs, irreducible: float | None, bootstraps: int) -> Analysis:
    """Fit the law to the runs, with E fixed at `irreducible` if that is known.

    Raises:
        UndeterminedError: the runs do not determine the law.
    """
    result = fit(runs.parameters, runs.tokens, runs.loss, irreducible)
    laws = bootstrap(runs, result.law, irreducible, bootstraps)
    forecast: Forecast | str
    try:
        forecast = held_out(runs, irreducible)
    except UserError as error:
        forecast = str(error)
    return Analysis(runs, irreducible, result, laws, forecast, budgets(runs, result.law))
