"""Scaling laws: how the loss depends on the number of parameters N and of training tokens D.

    loss(N, D) = E + A / N^alpha + B / D^beta

E is the irreducible loss, which remains however large N and D are. The law and the way to fit it are those of Hoffmann
et al. 2022 (section 3.3); Besiroglu et al. 2024 fitted it to the same runs again, with intervals.

    law = fit(parameters, tokens, loss).law
    law.loss(1e9, 2e10), law.compute_optimal(1e21)
"""

import math
from dataclasses import dataclass

import numpy as np

from lm.errors import UserError
from lm.studies.scaling.minimizer import EXPONENT_LIMITS, Problem, minimize

# Of training, per parameter and token: 2 forward and 4 backward. So C = 6 N D, which leaves out the scores of attention
# (Kaplan et al. 2020, section 2.1).
FLOPS_PER_WEIGHT = 6

Numbers = np.ndarray | float

# The exponents at which a search starts: those of published laws are from 0.05 to 0.8.
_EXPONENTS = np.geomspace(0.05, 2.5, 10)
_STARTS = 5


@dataclass(frozen=True)
class Law:
    """loss(N, D) = E + A / N^alpha + B / D^beta, in the unit of the losses that it was fitted to.

    The methods take numbers or arrays. What exceeds the range of floats becomes infinity, with numpy's warning.
    """

    A: float
    B: float
    E: float
    alpha: float
    beta: float

    def loss(self, parameters: Numbers, tokens: Numbers) -> Numbers:
        """The expected loss of a model with N `parameters` after training on D `tokens`.

        Example: with A 400, B 1000, E 1.5 and both exponents 0.5, 10⁴ parameters and 10⁶ tokens give 1.5 + 4 + 1 = 6.5.
        """
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta

    def compute_optimal(self, flops: Numbers) -> tuple[Numbers, Numbers]:
        """The parameters and tokens with the lowest loss for C = 6 N D FLOPs (Hoffmann et al. 2022, equation 4).

        N = G (C/6)^(beta / (alpha + beta)) and D = (C/6) / N, where G = (alpha A / (beta B))^(1 / (alpha + beta)).
        """
        log_product = np.log(flops / FLOPS_PER_WEIGHT)
        log_parameters = (self._log_balance + self.beta * log_product) / (self.alpha + self.beta)
        return np.exp(log_parameters), np.exp(log_product - log_parameters)

    def optimal_tokens(self, parameters: Numbers) -> Numbers:
        """The tokens for which a model with N `parameters` is compute-optimal.

        At the optimum, one more percent of N lowers the loss as much as one more percent of D does:
        alpha A / N^alpha = beta B / D^beta.
        """
        return np.exp((self.alpha * np.log(parameters) - self._log_balance) / self.beta)

    def optimal_parameters(self, tokens: Numbers) -> Numbers:
        """The parameters of the model that is compute-optimal for D `tokens`; the inverse of `optimal_tokens`."""
        return np.exp((self._log_balance + self.beta * np.log(tokens)) / self.alpha)

    def parameters_for_loss(self, loss: float) -> float:
        """The parameters of the compute-optimal model with this expected loss; infinity if no model reaches it.

        With the balance in `optimal_tokens`, loss - E = (1 + alpha / beta) A / N^alpha.
        """
        if loss <= self.E:
            return math.inf
        return float(np.exp(np.log((1 + self.alpha / self.beta) * self.A / (loss - self.E)) / self.alpha))

    @property
    def undetermined(self) -> str:
        """A sentence about exponents at the limits of the search, or "".

        There the loss does not fall with N or D as a power law does, and the fit says nothing about other runs.
        """
        at_limit = [
            name
            for name in ("alpha", "beta")
            if any(math.isclose(getattr(self, name), limit, rel_tol=1e-3) for limit in EXPONENT_LIMITS)
        ]
        if not at_limit:
            return ""
        low, high = EXPONENT_LIMITS
        return (
            f"The runs do not determine {' and '.join(at_limit)}, which ended at a limit of the search, {low:g} to "
            f"{high:g}: do not use this fit for predictions."
        )

    @property
    def _log_balance(self) -> float:
        return math.log(self.alpha) + math.log(self.A) - math.log(self.beta) - math.log(self.B)


class UndeterminedError(UserError):
    """The runs do not determine a law, because there are too few of them or they do not vary enough."""


@dataclass(frozen=True)
class Fit:
    """A law, and the minimum of the objective: the sum of the Huber losses of its errors."""

    law: Law
    objective: float


def fit(parameters: np.ndarray, tokens: np.ndarray, loss: np.ndarray, irreducible: float | None = None) -> Fit:
    """Fit the law to runs, given as arrays (n,) of positive numbers.

    The result minimizes the sum over the runs of Huber(log predicted loss - log loss) with delta = 1e-3, under which
    a run that is far off counts little. As the objective may have several minima, the search starts from the best pairs
    of exponents of a grid.

    Args:
        irreducible: The value of E, if it is known, at least 0; otherwise it is fitted, too.

    Raises:
        UndeterminedError: the runs do not determine the law, as all losses are equal, or see `check_points`.
        UserError: `irreducible` is not below the losses.
    """
    if irreducible is not None:
        check_irreducible(irreducible, loss)
    check_points(parameters, tokens, is_known=irreducible is not None)
    if loss.min() == loss.max():
        raise UndeterminedError(
            f"loss: expected different values, got {loss[0]:.6g} for all runs; add runs with other losses"
        )
    problem = Problem(np.log(parameters), np.log(tokens), np.log(loss), irreducible)
    weights = np.ones(len(loss))
    starts = problem.starts(_EXPONENTS, _STARTS, weights)
    theta, objective = minimize(problem, starts, np.tile(weights, (_STARTS, 1)))
    best = int(np.argmin(objective))
    return Fit(Law(*problem.laws(theta)[best].tolist()), float(objective[best]))


def check_irreducible(irreducible: float, loss: np.ndarray) -> None:
    """Check that a known E is below the losses (n,), of which there may be none.

    Raises:
        UserError: it is not: the value is wrong, or the models have seen the text that they are evaluated on.
    """
    lowest = np.min(loss, initial=np.inf)
    if not 0 <= irreducible < lowest:
        raise UserError(
            f"irreducible loss: expected 0 or more and less than the lowest loss, {lowest:.6g}, got {irreducible:.6g}; "
            "give the entropy of the text in the unit of the losses, and check that the text of the evaluation was not "
            "trained on"
        )


def check_points(parameters: np.ndarray, tokens: np.ndarray, *, is_known: bool) -> None:
    """Check that runs with these parameters and tokens, each array (n,), determine a law whose E may be known.

    There must be one run more than unknowns, with different N or D. An unknown E needs three sizes and three numbers of
    tokens, because two sizes tell only by how much their loss differs, and a known E needs two of each. N and D must
    not grow in proportion only: then a part of the loss could be due to either.

    Raises:
        UndeterminedError: they do not.
    """
    points = np.unique(np.stack([parameters, tokens]), axis=1)
    unknowns, levels = (4, 2) if is_known else (5, 3)
    reason = f"a fit of {'A, B, alpha and beta' if is_known else 'A, B, E, alpha and beta'}"
    for name, values in (("parameters", parameters), ("tokens", tokens)):
        if (count := len(np.unique(values))) < levels:
            raise UndeterminedError(
                f"{name}: expected {levels} or more different values for {reason}, got {count}; add runs"
            )
    if points.shape[1] <= unknowns:
        raise UndeterminedError(
            f"runs: expected {unknowns + 1} or more that differ in parameters or tokens for {reason}, got "
            f"{points.shape[1]}; add runs"
        )
    if abs(np.corrcoef(np.log(points))[0, 1]) > 0.9999:
        raise UndeterminedError(
            "runs: expected parameters and tokens that vary independently, got tokens that follow from parameters; "
            "add runs of the same size with other numbers of tokens"
        )
