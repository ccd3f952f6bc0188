"""The minimization behind the fit of a scaling law, for many starts or many weightings of the runs at once.

The unknowns are theta = (a, log alpha, b, log beta, e), and the law is

    log predicted loss = log(exp(a - alpha x) + exp(b - beta y) + exp(e))

where x and y are the logarithms of parameters and tokens minus their means, which keeps the unknowns from being nearly
dependent. With the shares p1, p2 and p3 of the three terms, the derivatives of this log-sum-exp by
(a, alpha, b, beta, e) are

    gradient J = (p1, -x p1, p2, -y p2, p3)        Hessian K - J Jᵀ

where K is p1 (1, -x; -x, x²), p2 (1, -y; -y, y²) and p3 on the diagonal. The logarithms of the exponents straighten
the valley along which a term with a small exponent trades against E, so that the search takes fewer steps.

In shapes, R is the number of starts or weightings, n that of runs, and 5 that of unknowns.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

DELTA = 1e-3  # where the Huber loss becomes linear in the error of the log loss (Hoffmann et al. 2022, section 3.3)

_MAX_STEPS = 300
_TOLERANCE = 1e-11  # the decrease that a last step may still promise, relative to the objective
_CHUNK = 2**15  # weightings times runs that are handled together, so that the arrays stay in the processor's cache
_MAX_DAMPING = 1e12  # so large that no step can decrease the objective any more
_TINY = 1e-300  # in place of a zero divisor
_SMALLEST_START = 0.01  # of the losses
_ABSENT = 30.0  # a term smaller than exp(-30) of the losses is as good as absent
EXPONENT_LIMITS = 0.01, 5.0  # beyond which a term is a constant, or a step between neighboring sizes


class Minimum(NamedTuple):
    """For each start, the unknowns (R, 5) and the objective (R,)."""

    theta: np.ndarray
    objective: np.ndarray


@dataclass(frozen=True)
class Problem:
    """The runs that a law is fitted to: the logarithms of their parameters, tokens and losses, each (n,).

    `irreducible` is E if it is known; then the last unknown stays fixed.
    """

    log_parameters: np.ndarray
    log_tokens: np.ndarray
    log_loss: np.ndarray
    irreducible: float | None

    @cached_property
    def x(self) -> np.ndarray:
        return self.log_parameters - self.log_parameters.mean()

    @cached_property
    def y(self) -> np.ndarray:
        return self.log_tokens - self.log_tokens.mean()

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest value of each unknown, so that a term that is not needed can shrink to nothing."""
        low, high = self.log_loss.min() - _ABSENT, self.log_loss.max() + 1
        lower, upper = (
            np.array([size, slope, size, slope, size]) for size, slope in zip((low, high), np.log(EXPONENT_LIMITS))
        )
        if self.irreducible is not None:
            lower[4] = upper[4] = np.log(self.irreducible) if self.irreducible > 0 else -np.inf
        return lower, upper

    def laws(self, theta: np.ndarray) -> np.ndarray:
        """The values of A, B, E, alpha and beta (R, 5) for unknowns (R, 5)."""
        a, alpha, b, beta, e = theta.T
        alpha, beta = np.exp(alpha), np.exp(beta)
        A = np.exp(a + alpha * self.log_parameters.mean())
        B = np.exp(b + beta * self.log_tokens.mean())
        E = np.exp(e) if self.irreducible is None else np.full_like(e, self.irreducible)
        return np.stack([A, B, E, alpha, beta], axis=1)

    def theta(self, A: float, B: float, E: float, alpha: float, beta: float) -> np.ndarray:
        """The unknowns (5,) of a law within the bounds; the inverse of `laws`."""
        lower, upper = self.bounds()
        with np.errstate(divide="ignore"):
            a, b, e = np.log([A, B, E])
        unknowns = [
            a - alpha * self.log_parameters.mean(),
            np.log(alpha),
            b - beta * self.log_tokens.mean(),
            np.log(beta),
            e,
        ]
        return np.clip(unknowns, lower, upper)

    def starts(self, exponents: np.ndarray, count: int, weights: np.ndarray) -> np.ndarray:
        """The best `count` unknowns (count, 5) whose exponents are in `exponents`.

        For given exponents the law is linear in A, B and E, which follow by non-negative least squares of the relative
        errors (variable projection, Golub and Pereyra 1973).
        """
        lower, upper = self.bounds()
        loss = np.exp(self.log_loss)
        root = np.sqrt(weights)
        fixed = 0.0 if self.irreducible is None else self.irreducible
        # A term that is zero here may be needed at other exponents, but its logarithm could not return from -inf.
        smallest = _SMALLEST_START * loss.min()
        found = []
        for alpha in exponents:
            for beta in exponents:
                terms = [np.exp(-alpha * self.x), np.exp(-beta * self.y)]
                if self.irreducible is None:
                    terms.append(np.ones_like(loss))
                factors, _ = nnls(np.stack(terms, axis=1) * (root / loss)[:, None], root * (1 - fixed / loss))
                a, b, e = np.log(np.maximum([*factors, fixed][:3], smallest))
                found.append([a, np.log(alpha), b, np.log(beta), e])
        theta = np.clip(found, lower, upper)
        objective = self.objective(theta, np.broadcast_to(weights, (len(theta), len(loss))))
        return theta[np.argsort(objective, kind="stable")[:count]]

    def objective(self, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The weighted sums of the Huber losses (R,) at unknowns (R, 5) with weights (R, n)."""
        error, _ = self._errors(theta)
        size = np.abs(error)
        huber = np.where(size <= DELTA, 0.5 * error**2, DELTA * (size - 0.5 * DELTA))
        return np.einsum("rn,rn->r", weights, huber)

    def derivatives(self, theta: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The gradients (R, 5) and the Hessians (R, 5, 5) of the objective."""
        error, (p1, p2, p3) = self._errors(theta)
        slope = weights * np.clip(error, -DELTA, DELTA)
        J = np.stack([p1, -self.x * p1, p2, -self.y * p2, p3], axis=1)  # (R, 5, n)
        gradient = np.einsum("rkn,rn->rk", J, slope)
        curvature = weights * (np.abs(error) <= DELTA) - slope
        hessian = (J * curvature[:, None]) @ J.transpose(0, 2, 1)
        for at, share, log_size in ((0, p1, self.x), (2, p2, self.y)):
            sums = (slope * share) @ np.stack([np.ones_like(log_size), -log_size, log_size**2], axis=1)
            hessian[:, at : at + 2, at : at + 2] += sums[:, [[0, 1], [1, 2]]]
        hessian[:, 4, 4] += np.einsum("rn,rn->r", slope, p3)
        # From derivatives by an exponent to those by its logarithm.
        for at in (1, 3):
            exponent = np.exp(theta[:, at])
            gradient[:, at] *= exponent
            hessian[:, at] *= exponent[:, None]
            hessian[:, :, at] *= exponent[:, None]
            hessian[:, at, at] += gradient[:, at]
        return gradient, hessian

    def _errors(self, theta: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Log predicted loss minus log loss (R, n), and the terms' shares of the predicted loss, each (R, n)."""
        a, log_alpha, b, log_beta, e = theta.T[:, :, None]
        terms = np.exp(a - np.exp(log_alpha) * self.x), np.exp(b - np.exp(log_beta) * self.y), np.exp(e)
        total = terms[0] + terms[1] + terms[2]
        return np.log(total) - self.log_loss, (terms[0] / total, terms[1] / total, terms[2] / total)


def minimize(problem: Problem, starts: np.ndarray, weights: np.ndarray) -> Minimum:
    """Minimize the objective from each of the `starts` (R, 5), with the weights (R, n) of the runs.

    Newton's method with exact second derivatives, damped as by Levenberg and Marquardt. Where the objective curves
    downward, the step uses the absolute curvature, so that it leads away from saddle points (Dauphin et al. 2014).
    """
    rows = max(1, _CHUNK // len(problem.log_loss))
    chunks = [slice(at, at + rows) for at in range(0, len(starts), rows)]
    minima = [_minimize_chunk(problem, starts[chunk], weights[chunk]) for chunk in chunks]
    return Minimum(*(np.concatenate(parts) for parts in zip(*minima)))


def _minimize_chunk(problem: Problem, starts: np.ndarray, weights: np.ndarray) -> Minimum:
    lower, upper = problem.bounds()
    theta = np.clip(starts, lower, upper)
    objective = problem.objective(theta, weights)
    damping = np.full(len(theta), 1e-2)  # relative to the largest curvature
    active = np.arange(len(theta))  # the rows that have not converged
    for _ in range(_MAX_STEPS):
        now, w = theta[active], weights[active]
        gradient, hessian = problem.derivatives(now, w)
        # An unknown stays on its bound while the objective decreases beyond it.
        held = ((now <= lower) & (gradient >= 0)) | ((now >= upper) & (gradient <= 0))
        gradient[held] = 0
        hessian[held[:, :, None] | held[:, None, :]] = 0

        curvature, directions = np.linalg.eigh(hessian)
        largest = np.abs(curvature).max(axis=1, keepdims=True)
        curvature = np.maximum(np.abs(curvature), 1e-12 * largest + _TINY)
        slope = np.einsum("rkj,rk->rj", directions, gradient)
        damped = curvature + damping[active, None] * largest
        step = -np.einsum("rkj,rj->rk", directions, slope / damped)
        candidate = np.clip(now + step, lower, upper)
        reached = problem.objective(candidate, w)

        decrease = objective[active] - reached
        predicted = np.sum(slope**2 / damped * (1 - 0.5 * curvature / damped), axis=1)
        agreement = decrease / np.maximum(predicted, _TINY)
        damping[active] *= np.select([agreement > 0.75, agreement > 0.25], [0.2, 1.0], 4.0)
        undamped = 0.5 * np.sum(slope**2 / curvature, axis=1)
        is_converged = (undamped <= _TOLERANCE * objective[active] + 1e-30) | (damping[active] > _MAX_DAMPING)
        accepted = active[decrease > 0]
        theta[accepted], objective[accepted] = candidate[decrease > 0], reached[decrease > 0]
        active = active[~is_converged]
        if not len(active):
            break
    return Minimum(theta, objective)
