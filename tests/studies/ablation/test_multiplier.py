import math

import pandas as pd
import pytest
from scipy import stats

from lm.studies.ablation.multiplier import multiplier

TOKENS = (1000, 2000, 4000, 8000)


def power_law(
    scale: float, exponent: float = 0.5, floor: float = 0.5, flops_per_token: float = 6.0, seed: int = 0
) -> pd.DataFrame:
    """Runs whose loss is floor + scale * flops^-exponent."""
    flops = [flops_per_token * tokens for tokens in TOKENS]
    loss = [floor + scale * value**-exponent for value in flops]
    return pd.DataFrame({"tokens": TOKENS, "seed": seed, "flops": flops, "loss": loss, "floor": floor})


def several(*scales: float) -> pd.DataFrame:
    return pd.concat([power_law(scale, seed=seed) for seed, scale in enumerate(scales)])


def points(losses: list[float], flops: list[float], floor: float = math.nan, seed: int = 0) -> pd.DataFrame:
    return pd.DataFrame({"tokens": flops, "seed": seed, "flops": flops, "loss": losses, "floor": floor})


@pytest.mark.parametrize("true", [0.3, 0.8, 1.0, 1.5, 5.0])
@pytest.mark.parametrize("exponent", [0.2, 1.0])
def test_power_laws_have_a_known_multiplier(true, exponent):
    # scale C^-b = C0^-b at C = scale^(1/b) C0
    result = multiplier(power_law(1, exponent), power_law(true**-exponent, exponent))
    assert result.value == pytest.approx(true)
    assert result.is_extrapolated == (true < 1) and result.bound == ""
    assert math.isnan(result.low) and math.isnan(result.high)  # one seed


def test_every_variant_pays_its_own_flops():
    result = multiplier(power_law(1), power_law(1, flops_per_token=9.0))
    assert result.value == pytest.approx(1)  # the same loss for the same FLOPs, though with fewer tokens
    assert not result.is_extrapolated


def test_the_examples_of_the_documentation():
    baseline = points([0.7, 0.5], [1e9, 4e9], floor=0.0)
    result = multiplier(baseline, points([0.6, 0.4], [1e9, 4e9], floor=0.0))
    share = math.log(0.6 / 0.5) / math.log(0.6 / 0.4)
    assert result.value == pytest.approx(4 ** (1 - share))
    assert round(result.value, 2) == 2.14 and round(4 / result.value, 2) == 1.87


def test_without_a_floor_the_loss_itself_is_interpolated():
    unknown, zero = (multiplier(points([3, 2], [1, 4], f), points([3, 1.5], [1, 4], f)) for f in (math.nan, 0.0))
    assert unknown.value == zero.value
    assert multiplier(points([3, 2], [1, 4], 1.0), points([3, 1.5], [1, 4], 1.0)).value != unknown.value


def test_seeds_are_paired_and_give_an_interval_of_the_logarithm():
    true = [1.2, 1.5, 1.3]
    result = multiplier(several(1, 2, 3), several(*(scale / math.sqrt(m) for scale, m in zip((1, 2, 3), true))))
    logs = [math.log(m) for m in true]
    interval = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert result.value == pytest.approx(math.exp(sum(logs) / 3))
    assert (result.low, result.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))


def test_a_seed_that_only_one_has_does_not_count():
    assert multiplier(several(1, 1, 9), several(0.5, 0.5)).value == pytest.approx(4)


def test_the_first_time_that_the_loss_is_reached_counts():
    baseline = points([1.0, 0.5], [1, 8])
    assert multiplier(baseline, points([1.0, 0.5, 0.9, 0.4], [1, 2, 4, 8])).value == pytest.approx(4)


def test_a_variant_that_never_comes_close_has_an_upper_bound():
    for losses in ([0.9, 0.9], [0.9, 0.95], [0.9, 0.89]):  # flat, rising, falling too slowly
        result = multiplier(points([1.0, 0.5], [1, 8]), points(losses, [1, 8]))
        assert (result.bound, result.is_extrapolated) == ("less than", True)
        assert result.value == pytest.approx(0.25)
        assert math.isnan(result.low) and math.isnan(result.high)


def test_a_variant_that_is_better_at_its_smallest_cost_has_a_lower_bound():
    result = multiplier(points([1.0, 0.5], [1, 8]), points([0.4, 0.3], [1, 8]))
    assert (result.bound, result.value, result.is_extrapolated) == ("more than", pytest.approx(8), False)


def test_a_variant_that_is_equal_at_its_smallest_cost_reaches_the_loss_there():
    for losses in ([0.5, 0.4], [0.5, 0.5], [0.5, 0.6]):
        result = multiplier(points([1.0, 0.5], [1, 8]), points(losses, [2, 8]))
        assert (result.bound, result.value, result.is_extrapolated) == ("", pytest.approx(4), False)


def test_bounds_of_some_seeds_make_a_bound_and_opposite_ones_nothing():
    baseline = pd.concat([points([1.0, 0.5], [1, 8], seed=seed) for seed in (0, 1)])
    slow, fast = [0.9, 0.9], [0.4, 0.3]
    equal, never = points([1.0, 0.5], [1, 8]), points(slow, [1, 8], seed=1)
    result = multiplier(baseline, pd.concat([equal, never]))
    assert result.bound == "less than" and result.value == pytest.approx(math.sqrt(0.25))
    assert multiplier(baseline, pd.concat([points(fast, [1, 8]), never])) is None


def test_nothing_is_made_up():
    baseline, one_run = power_law(1), power_law(1).head(1)
    assert multiplier(baseline, one_run) is None
    assert multiplier(baseline, power_law(1, seed=5)) is None  # no pair
    diverged = power_law(1)
    diverged.loc[0, "loss"] = math.nan
    assert multiplier(baseline, diverged) is None
    assert multiplier(points([0.6, 0.5], [1, 8], 0.5), points([0.6, 0.55], [1, 8], 0.5)) is None  # at the floor


def test_the_cost_may_be_the_time():
    baseline, variant = (power_law(1).assign(seconds=[1.0, 2, 4, 8]), power_law(1).assign(seconds=[2.0, 4, 8, 16]))
    assert multiplier(baseline, variant).value == pytest.approx(1)
    assert multiplier(baseline, variant, cost="seconds").value == pytest.approx(0.5)
    same = variant.assign(seconds=3.0, loss=1.0)
    assert multiplier(baseline, same, cost="seconds").bound == "less than"  # no slope, and no division by zero
