import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lm.studies.ablation.comparison import comparison, holm, minimum_detectable_difference, paired_difference


def frame(**losses: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"variant": variant.replace("_", "-"), "seed": seed, "loss": loss}
            for variant, values in losses.items()
            for seed, loss in enumerate(values)
        ]
    )


def row(rows: pd.DataFrame, variant: str) -> dict:
    return rows.set_index("variant").loc[variant].to_dict()


def test_a_case_worked_by_hand():
    # Mean 2, standard deviation 1, standard error 1 / sqrt(3), t = 2 sqrt(3) = 3.4641 with 2 degrees of freedom, for
    # which 1 - p = t / sqrt(2 + t^2); the 97.5% quantile is 4.3027.
    result = paired_difference(np.array([1.0, 2.0, 3.0]))
    assert result.mean == 2
    assert result.p_value == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-9)
    assert (result.low, result.high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))


def test_equals_scipys_paired_test():
    random = np.random.default_rng(0)
    for n in (2, 3, 5, 20):
        baseline = random.normal(0.7, 0.05, n)
        variant = baseline + random.normal(0.01, 0.01, n)
        expected = stats.ttest_rel(variant, baseline)
        interval = expected.confidence_interval(0.95)
        result = paired_difference(variant - baseline)
        assert result.p_value == pytest.approx(expected.pvalue)
        assert (result.low, result.high) == pytest.approx((interval.low, interval.high))


def test_differences_without_variance():
    same = paired_difference(np.zeros(3))
    assert (same.mean, same.low, same.high, same.p_value, same.detectable) == (0, 0, 0, 1, 0)
    shifted = paired_difference(np.full(3, 0.5))
    assert (shifted.mean, shifted.low, shifted.high, shifted.p_value) == (0.5, 0.5, 0.5, 0)


def test_intervals_cover_the_truth_in_95_percent_of_simulations():
    random = np.random.default_rng(1)
    results = [paired_difference(random.normal(0.3, 1, 3)) for _ in range(400)]
    covered = np.mean([result.low <= 0.3 <= result.high for result in results])
    assert covered == pytest.approx(0.95, abs=0.033)  # three standard errors


def test_minimum_detectable_difference_agrees_with_published_sample_sizes():
    # The number of pairs for a power of 80% at 5%, two-sided, by Cohen's d of the differences, as G*Power gives it.
    for effect, pairs in ((0.2, 199), (0.5, 34), (0.8, 15)):
        assert minimum_detectable_difference(1, pairs) <= effect < minimum_detectable_difference(1, pairs - 1)
    assert minimum_detectable_difference(3, 34) == pytest.approx(3 * minimum_detectable_difference(1, 34))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_minimum_detectable_difference_is_detected_in_80_percent_of_simulations(n):
    samples = np.random.default_rng(n).normal(minimum_detectable_difference(1, n), 1, (20_000, n))
    t = samples.mean(1) / (samples.std(1, ddof=1) / math.sqrt(n))
    assert np.mean(np.abs(t) > stats.t.ppf(0.975, n - 1)) == pytest.approx(0.8, abs=0.01)


def test_holm_agrees_with_published_examples():
    # Wikipedia's article on the method, where H4 and H1 are rejected at 5%, and the example of R's p.adjust.
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.01, 0.02, 0.03, 0.04, 0.05])) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm(np.array([0.6, 0.7])) == pytest.approx([1, 1])
    assert len(holm(np.array([]))) == 0


def test_verdicts_and_the_correction_over_the_rows():
    rows = comparison(
        frame(
            baseline=[1.0, 2.0, 3.0],
            good=[0.9, 1.9001, 2.8999],
            bad=[1.1, 2.1001, 3.0999],
            close=[1.1, 1.9, 3.01],
        ),
        "baseline",
    )
    assert rows["variant"].tolist() == ["baseline", "good", "bad", "close"]
    assert rows["verdict"].tolist() == ["baseline", "better", "worse", "no difference shown"]
    assert rows["pairs"].tolist() == [3, 3, 3, 3]
    raw = [stats.ttest_1samp(values, 0).pvalue for values in ([0.1, 0.0999, 0.1001], [0.1, -0.1, 0.01])]
    assert row(rows, "good")["p_value"] == pytest.approx(3 * raw[0])
    assert row(rows, "close")["p_value"] == pytest.approx(raw[1])
    assert row(rows, "baseline")["difference"] == 0 and math.isnan(row(rows, "baseline")["p_value"])


def test_only_seeds_that_both_have_are_pairs():
    cells = frame(baseline=[1.0, 2.0, 9.0], x=[1.5, 2.5, 0.0])
    cells.loc[cells["variant"] == "x", "seed"] = [0, 1, 7]
    x = row(comparison(cells, "baseline"), "x")
    assert (x["difference"], x["pairs"]) == (0.5, 2)


def test_one_seed_has_a_difference_and_nothing_more():
    rows = comparison(frame(baseline=[1.0], x=[1.5]), "baseline")
    assert row(rows, "x")["difference"] == 0.5 and row(rows, "x")["verdict"] == "one seed"
    assert rows[["difference_low", "difference_high", "p_value", "minimum_detectable_difference"]].isna().all(axis=None)


def test_a_run_without_a_loss_is_no_difference_and_no_test():
    rows = comparison(frame(baseline=[1.0, 2.0], wild=[0.9, math.nan], x=[1.1, 2.10001]), "baseline")
    assert row(rows, "wild")["verdict"] == "diverged" and math.isnan(row(rows, "wild")["difference"])
    alone = comparison(frame(baseline=[1.0, 2.0], x=[1.1, 2.10001]), "baseline")
    assert row(rows, "x") == row(alone, "x")  # the correction counts the tests that took place


def test_a_baseline_without_a_loss_or_without_runs():
    assert row(comparison(frame(baseline=[1.0, math.nan], x=[1.0, 1.0]), "baseline"), "x")["verdict"] == (
        "baseline diverged"
    )
    assert comparison(frame(x=[1.0, 1.0]), "baseline")["verdict"].tolist() == ["no pair"]
