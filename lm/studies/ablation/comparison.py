"""The difference between a variant and the baseline, taken seed by seed, and how certain it is.

Runs with the same seed are a pair. Their losses vary together, so the difference within a pair varies much less than
the losses do, and few seeds show small differences:

    baseline 0.70, 0.74    variant 0.71, 0.75    difference +0.01, +0.01
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special  # the t distribution, without the second that scipy.stats takes to import

SIGNIFICANCE = 0.05
_POWER = 0.8


@dataclass(frozen=True)
class PairedDifference:
    """A mean difference over pairs; everything but `mean` is NaN for a single pair.

    Attributes:
        mean: The mean over the pairs.
        low: The lower end of its 95% t-interval.
        high: The upper end.
        p_value: Of the two-sided paired t-test.
        detectable: The minimum detectable difference (see `minimum_detectable_difference`).
    """

    mean: float
    low: float
    high: float
    p_value: float
    detectable: float


def paired_difference(differences: np.ndarray) -> PairedDifference:
    """The paired t-test of differences (N,), one per pair.

    If all differences are equal, the interval has no width, and the p-value is 1 if they are 0, and otherwise 0.

    Example: the differences 1, 2 and 3 give 2 with the interval -0.484 to 4.484 and p = 0.0742.
    """
    n = len(differences)
    mean = float(np.mean(differences))
    if n < 2:
        return PairedDifference(mean, math.nan, math.nan, math.nan, math.nan)
    std = float(np.std(differences, ddof=1))
    stderr = std / math.sqrt(n)
    margin = float(special.stdtrit(n - 1, 1 - SIGNIFICANCE / 2)) * stderr
    t = abs(mean) / stderr if stderr > 0 else (math.inf if mean else 0.0)
    p_value = 2 * float(special.stdtr(n - 1, -t))
    return PairedDifference(mean, mean - margin, mean + margin, p_value, minimum_detectable_difference(std, n))


def minimum_detectable_difference(std: float, n: int) -> float:
    """The true difference that a two-sided paired test at 5% with `n` >= 2 pairs detects with a probability of 80%.

    With a true difference d, the t-statistic has a noncentral t distribution with the noncentrality d sqrt(n) / std
    (Cohen 1988, section 2.2). The level of 5% is that of a single test, before Holm's correction. How large a
    difference may still be that a test did not detect is a question for its interval.

    Args:
        std: The standard deviation of the differences.
        n: The number of pairs.

    Example: 34 pairs detect a difference of half a standard deviation.
    """
    critical = float(special.stdtrit(n - 1, 1 - SIGNIFICANCE / 2))
    # The noncentrality at which t exceeds the critical value with the wanted probability; the chance that it falls
    # below the negative one is then negligible.
    return float(special.nctdtrinc(n - 1, 1 - _POWER, critical)) * std / math.sqrt(n)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values (N,) so that the probability of any false finding among them stays at the level (Holm 1979).

    Example: 0.01, 0.04, 0.03 and 0.005 become 0.03, 0.06, 0.06 and 0.02.
    """
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1)
    return adjusted


def comparison(cells: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Compare each variant with the baseline at one size and number of tokens.

    Args:
        cells: Runs of one size and one number of tokens, with the columns `variant`, `seed` and `loss` (NaN for a run
            that diverged); each variant has at most one run per seed.
        baseline: Its variant, which may have no runs.

    Returns:
        One row per variant, in the order of `cells`: `variant`, `difference` (variant minus baseline, mean over the
        seeds that both have), `difference_low`, `difference_high`, `p_value` (after Holm's correction over the rows
        that have one), `verdict`, `minimum_detectable_difference`, and `pairs`, the number of seeds that both have.

        The verdict is `better` or `worse` if the p-value is below 0.05, and otherwise `no difference shown`. Without a
        p-value it says why: `baseline`, `one seed`, `no pair`, `diverged` if a run of the variant has no loss, or
        `baseline diverged`. The mean of the runs that happened to survive would flatter a variant, so a variant with a
        run that diverged has no difference.
    """
    losses = {str(name): group.set_index("seed")["loss"] for name, group in cells.groupby("variant", sort=False)}
    reference = losses.get(baseline, pd.Series(dtype=float))
    rows = pd.DataFrame([_compare(name, baseline, reference, values) for name, values in losses.items()])
    is_tested = rows["p_value"].notna()
    rows.loc[is_tested, "p_value"] = holm(rows.loc[is_tested, "p_value"].to_numpy())
    is_found = rows["p_value"] < SIGNIFICANCE
    rows.loc[is_found & (rows["difference"] < 0), "verdict"] = "better"
    rows.loc[is_found & (rows["difference"] > 0), "verdict"] = "worse"
    return rows


def _compare(name: str, baseline: str, reference: pd.Series, losses: pd.Series) -> dict[str, object]:
    """The row of a variant before Holm's correction."""
    differences = (losses - reference).loc[losses.index.intersection(reference.index)].to_numpy(dtype=float)
    result = PairedDifference(math.nan, math.nan, math.nan, math.nan, math.nan)
    if losses.isna().any():
        verdict = "diverged"
    elif name == baseline:
        verdict, result = "baseline", PairedDifference(0.0, math.nan, math.nan, math.nan, math.nan)
    elif len(differences) == 0:
        verdict = "no pair"
    elif np.isnan(differences).any():
        verdict = "baseline diverged"
    else:
        verdict, result = "no difference shown", paired_difference(differences)
        if len(differences) == 1:
            verdict = "one seed"
    return {
        "variant": name,
        "difference": result.mean,
        "difference_low": result.low,
        "difference_high": result.high,
        "p_value": result.p_value,
        "verdict": verdict,
        "minimum_detectable_difference": result.detectable,
        "pairs": len(differences),
    }
