"""Estimates with their uncertainty."""

import math
from dataclasses import dataclass

import numpy as np

Metrics = dict[str, float]

_BINS = 15  # as in Guo et al. 2017


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error, which is None if there are too few observations to estimate it."""

    value: float
    stderr: float | None

    def metrics(self, name: str) -> Metrics:
        """The value as `name`, and its standard error, if it is known, as `name_stderr`."""
        return {name: self.value} | ({} if self.stderr is None else {f"{name}_stderr": self.stderr})


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
    """The ratio of two sums over independent documents, each array (N,), and its standard error.

    The standard error is that of a ratio estimator (Cochran 1977, section 2.11): documents whose ratio differs from the
    estimate contribute, weighted by their size.

    Example: numerators 1 and 3 with denominators 2 and 2 give 1 with a standard error of 0.5.
    """
    total = float(np.sum(denominators))
    value = float(np.sum(numerators)) / total
    n = len(numerators)
    if n < 2:
        return Estimate(value, None)
    residuals = numerators - value * denominators
    return Estimate(value, math.sqrt(n / (n - 1) * float(np.sum(residuals**2))) / total)


def mean(values: np.ndarray) -> Estimate:
    """The mean of independent values (N,) and its standard error."""
    return ratio(values, np.ones(len(values)))


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95% confidence interval of a probability (Wilson 1927).

    Example: 0 successes in 10 trials give about 0 to 0.278.
    """
    z = 1.959964
    share = successes / trials
    center = share + z * z / (2 * trials)
    margin = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (center - margin) / scale), min(1.0, (center + margin) / scale)


@dataclass(frozen=True)
class Reliability:
    """How often predictions of a certain probability are right, in bins of equal width that are not empty.

    Attributes:
        probability: The mean probability of the predictions in each bin.
        accuracy: The share of them that is right.
        weight: The share of all predictions that is in the bin.
    """

    probability: np.ndarray
    accuracy: np.ndarray
    weight: np.ndarray

    @property
    def total_accuracy(self) -> float:
        """The share of all predictions that is right."""
        return float(np.sum(self.weight * self.accuracy))

    @property
    def error(self) -> float:
        """The expected calibration error: the mean difference of probability and accuracy (Guo et al. 2017)."""
        return float(np.sum(self.weight * np.abs(self.probability - self.accuracy)))


def reliability(probability: np.ndarray, is_right: np.ndarray) -> Reliability:
    """Group predictions (N,) by their probability.

    Example: four predictions with probability 0.9, of which two are right, give one bin with accuracy 0.5, and the
    error 0.4.
    """
    bins = np.minimum((probability * _BINS).astype(np.int64), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    filled = counts > 0
    sums = [np.bincount(bins, values, _BINS)[filled] for values in (probability, is_right)]
    return Reliability(sums[0] / counts[filled], sums[1] / counts[filled], counts[filled] / len(bins))
