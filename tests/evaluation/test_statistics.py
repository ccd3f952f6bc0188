import math

import numpy as np
import pytest

from lm.evaluation.statistics import mean, ratio, reliability, wilson_interval


def test_the_standard_error_of_a_mean_is_that_of_the_textbook():
    values = np.random.default_rng(1).normal(size=50)
    estimate = mean(values)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(50))


def test_the_standard_error_of_a_ratio_is_its_spread_over_repeated_samples():
    generator = np.random.default_rng(2)

    def sample() -> tuple[np.ndarray, np.ndarray]:
        sizes = generator.uniform(50, 150, size=200)
        return sizes * generator.normal(2.0, 0.3, size=200) + generator.normal(0, 5, size=200), sizes

    estimates = [ratio(*sample()) for _ in range(2000)]
    spread = np.std([estimate.value for estimate in estimates])
    assert np.mean([estimate.stderr for estimate in estimates]) == pytest.approx(spread, rel=0.06)


def test_one_observation_has_no_standard_error():
    assert mean(np.array([3.0])).stderr is None
    assert ratio(np.array([1.0, 3.0]), np.array([2.0, 2.0])).stderr == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_intervals_are_the_published_ones(successes, trials, expected):
    assert wilson_interval(successes, trials) == pytest.approx(expected, abs=5e-5)


def test_a_calibrated_prediction_has_a_small_error_and_an_overconfident_one_does_not():
    generator = np.random.default_rng(3)
    probability = generator.uniform(size=200_000)
    is_right = generator.uniform(size=200_000) < probability
    assert reliability(probability, is_right).error < 0.01
    # E |p - p²| over uniform p is 1/6.
    overconfident = reliability(probability, generator.uniform(size=200_000) < probability**2)
    assert overconfident.error == pytest.approx(1 / 6, abs=0.01)


def test_reliability_by_hand():
    result = reliability(np.array([0.9, 0.9, 0.9, 0.9, 1.0, 0.1]), np.array([1, 0, 1, 0, 1, 0], dtype=bool))
    assert result.probability == pytest.approx([0.1, 0.9, 1.0])
    assert result.accuracy == pytest.approx([0.0, 0.5, 1.0])
    assert result.error == pytest.approx(1 / 6 * 0.1 + 4 / 6 * 0.4)
