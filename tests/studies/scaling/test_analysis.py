import math
from dataclasses import replace

import numpy as np
import pytest

from lm.studies.scaling.analysis import Analysis, analyze
from lm.studies.scaling.forecasts import most_expensive
from lm.studies.scaling.law import Law, UndeterminedError
from lm.studies.scaling.runs import Runs
from lm.studies.scaling.study import MAIN_COUNT, Study
from lm.studies.scaling.table import markdown

LAW = Law(A=60, B=700, E=0.75, alpha=0.5, beta=0.45)


def runs_of(sizes: int, token_counts: int) -> Runs:
    axes = np.meshgrid(np.geomspace(3e4, 3e6, sizes), np.geomspace(1e6, 6e7, token_counts))
    N, D = (values.ravel() for values in axes)
    return Runs(N, D, np.asarray(LAW.loss(N, D)))


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    runs = runs_of(4, 4)
    return analyze(runs, None, 10, most_expensive(runs))


def with_irreducible(analysis: Analysis, values: np.ndarray) -> Analysis:
    return replace(analysis, laws=[replace(LAW, E=value) for value in values])


def test_the_difference_from_the_entropy_in_standard_errors(analysis):
    """Values of a normal distribution with the standard deviation 0.1."""
    values = 0.75 + 0.1 * np.random.default_rng(0).standard_normal(100_000)
    assert with_irreducible(analysis, values).standard_errors_from(0.55) == pytest.approx(2, rel=0.02)


def row_of_the_entropy(analysis: Analysis) -> str:
    """The row of the table that compares E with an entropy of 0.55; the fitted E is 0.75."""
    tables = markdown(Study(0.55, [], {MAIN_COUNT: analysis}, {}))
    (row,) = (line for line in tables.splitlines() if "| +0.2000 |" in line)
    return row


@pytest.mark.parametrize("values", [np.full(100, 1e-13), np.geomspace(1e-13, 1e-9, 100)])
def test_where_no_sample_needs_e_it_is_not_determined(analysis, values):
    changed = with_irreducible(analysis, values)
    assert changed.needs_no_irreducible_loss and math.isnan(changed.standard_errors_from(0.55))
    assert row_of_the_entropy(changed).endswith("| 0, its lower bound | +0.2000 | not determined |  |")


def test_an_interval_without_width_has_no_standard_error(analysis):
    changed = with_irreducible(analysis, np.full(100, 0.75))
    assert not changed.needs_no_irreducible_loss and math.isnan(changed.standard_errors_from(0.55))
    assert row_of_the_entropy(changed).endswith("| +0.2000 | no |  |")


def test_too_few_cheap_runs_are_a_reason_and_too_few_runs_an_error():
    runs = runs_of(3, 3).select(np.array([0, 1, 2, 3, 4, 6, 8]))
    assert str(analyze(runs, None, 10, most_expensive(runs)).held_out).startswith(
        "parameters: expected 3 or more different values"
    )
    few = runs.select(np.arange(5))
    with pytest.raises(UndeterminedError):
        analyze(few, None, 10, most_expensive(few))


def test_the_flops_are_six_for_each_parameter_and_token():
    assert Runs(np.array([2.0]), np.array([5.0]), np.array([1.0])).flops.tolist() == [60]
