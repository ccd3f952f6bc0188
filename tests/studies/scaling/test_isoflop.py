import numpy as np
import pytest

from lm.studies.scaling.isoflop import exponent, isoflops
from lm.studies.scaling.law import Law
from lm.studies.scaling.runs import Runs

LAW = Law(A=400, B=1000, E=1.5, alpha=0.5, beta=0.5)  # so N_opt = sqrt(C / 37.5)


def runs_at(flops: list[float], around: float = 4.0, sizes: int = 7) -> Runs:
    C = np.repeat(flops, sizes)
    N = np.sqrt(C / 37.5) * np.tile(np.geomspace(1 / around, around, sizes), len(flops))
    return Runs(N, C / (6 * N), np.asarray(LAW.loss(N, C / (6 * N))))


def test_the_minimum_and_its_exponent_are_those_of_the_law_for_the_same_flops():
    groups = isoflops(runs_at([37.5e10, 37.5e12, 37.5e14]), LAW)
    assert [group.optimum for group in groups] == [pytest.approx(size, rel=1e-6) for size in (1e5, 1e6, 1e7)]
    assert [LAW.compute_optimal(group.flops)[0] for group in groups] == pytest.approx([1e5, 1e6, 1e7])
    assert exponent(groups) == pytest.approx(0.5)
    assert groups[0].verdict == "100,000"


def test_runs_with_slightly_other_flops_are_moved_to_the_mean():
    runs = runs_at([37.5e12])
    tokens = runs.tokens * np.geomspace(0.8, 1.25, len(runs))
    moved = Runs(runs.parameters, tokens, np.asarray(LAW.loss(runs.parameters, tokens)))
    (group,) = isoflops(moved, LAW)
    assert group.flops == pytest.approx(37.5e12)
    assert group.loss == pytest.approx(runs.loss[np.argsort(moved.flops)])


def test_a_factor_of_two_starts_a_new_group():
    groups = isoflops(runs_at([1e12, 1.9e12, 2e12, 4e12], sizes=1), LAW)
    assert [len(group.loss) for group in groups] == [2, 1, 1]


def test_groups_without_a_minimum_say_why():
    (few,) = isoflops(runs_at([1e12], sizes=2), LAW)
    assert few.optimum is None and few.verdict == "too few runs: 2 sizes, a parabola needs 3"
    runs = runs_at([1e12])
    (large,) = isoflops(runs.select(runs.parameters > 1.5 * np.sqrt(1e12 / 37.5)), LAW)
    assert large.verdict == "no minimum between the sizes: the smallest is best"
    (small,) = isoflops(runs.select(runs.parameters < 0.7 * np.sqrt(1e12 / 37.5)), LAW)
    assert small.verdict == "no minimum between the sizes: the largest is best"
    assert exponent([few, large, small]) is None
