import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lm.studies.scaling.bootstrap import bootstrap, interval, intervals
from lm.studies.scaling.law import Law, fit
from lm.studies.scaling.runs import Runs

CHINCHILLA = Path(__file__).resolve().parents[4] / "shared/data/scaling/chinchilla.csv"
LAW = Law(A=60, B=700, E=0.75, alpha=0.5, beta=0.45)


def runs_of(sizes: int, token_counts: int, noise: float, seed: int = 0, repetitions: int = 1) -> Runs:
    axes = np.meshgrid(np.geomspace(3e4, 3e6, sizes), np.geomspace(1e6, 6e7, token_counts))
    N, D = (values.ravel() for values in axes)
    N, D = np.repeat(N, repetitions), np.repeat(D, repetitions)
    scatter = np.random.default_rng(seed).standard_normal(len(N))
    return Runs(N, D, LAW.loss(N, D) * np.exp(noise * scatter))


def fitted(runs: Runs, irreducible: float | None = None) -> Law:
    return fit(runs.parameters, runs.tokens, runs.loss, irreducible).law


def test_the_interval_is_that_of_the_middle_95_percent():
    assert interval(range(1, 1001)) == (25, 975)
    assert interval([1.0, *[2.0] * 98, np.inf]) == (2, 2)


def test_samples_of_runs_without_noise_have_the_same_law():
    runs = runs_of(4, 5, noise=0)
    ends = intervals(bootstrap(runs, fitted(runs), None, 50))
    assert ends["E"] == (pytest.approx(LAW.E, rel=1e-4), pytest.approx(LAW.E, rel=1e-4))


def test_a_bootstrap_is_reproducible_and_keeps_a_known_e():
    runs = runs_of(4, 5, noise=0.01)
    law = fitted(runs)
    assert bootstrap(runs, law, None, 20) == bootstrap(runs, law, None, 20)
    assert all(sample.E == 0.75 for sample in bootstrap(runs, fitted(runs, 0.75), 0.75, 20))


def test_the_runs_of_a_cell_are_drawn_together():
    """Repeating every run changes nothing: the cells are still as many, and no seed adds information."""
    runs = runs_of(4, 4, noise=0.01)
    twice = runs.select(np.repeat(np.arange(len(runs)), 2))
    law = fitted(runs)
    for once, doubled in zip(bootstrap(runs, law, None, 10), bootstrap(twice, law, None, 10)):
        assert pytest.approx(once.E, abs=1e-4) == doubled.E


def test_nine_cells_have_intervals_though_many_samples_do_not_determine_the_law():
    runs = runs_of(3, 3, noise=0.005)
    law = fitted(runs)
    ends = intervals(bootstrap(runs, law, None, 200))
    assert all(0 <= low <= getattr(law, name) <= high < np.inf for name, (low, high) in ends.items())


@pytest.mark.slow
@pytest.mark.parametrize("irreducible", [None, 0.75])
@pytest.mark.parametrize(("sizes", "token_counts"), [(3, 3), (5, 5)])
def test_the_intervals_cover_the_truth_in_87_of_100_simulations_or_more(sizes, token_counts, irreducible):
    simulations = 200
    covered = dict.fromkeys(("A", "B", "E", "alpha", "beta"), 0)
    for seed in range(simulations):
        runs = runs_of(sizes, token_counts, noise=0.005, seed=seed)
        ends = intervals(bootstrap(runs, fitted(runs, irreducible), irreducible, 200))
        for name, (low, high) in ends.items():
            covered[name] += low <= getattr(LAW, name) <= high
    assert min(covered.values()) >= 0.87 * simulations


@pytest.mark.slow
@pytest.mark.skipif(not CHINCHILLA.exists(), reason="needs the points of Hoffmann et al.")
def test_the_published_intervals_of_the_points_of_hoffmann_et_al():
    """Besiroglu et al. 2024. The ends vary from one bootstrap to another, and most for B."""
    rows = pd.read_csv(CHINCHILLA).sort_values("loss").iloc[:-5]
    N, flops, loss = (rows[name].to_numpy() for name in ("Model Size", "Training FLOP", "loss"))
    runs = Runs(N, flops / (6 * N), loss)
    start = time.process_time()
    ends = intervals(bootstrap(runs, fitted(runs), None, 4000))
    assert time.process_time() - start < 60
    assert ends["A"] == (pytest.approx(285, rel=0.03), pytest.approx(744, rel=0.03))
    assert ends["B"] == (pytest.approx(1042, rel=0.08), pytest.approx(5810, rel=0.08))
    assert ends["E"] == (pytest.approx(1.769, abs=0.004), pytest.approx(1.871, abs=0.004))
