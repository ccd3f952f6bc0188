import numpy as np
import pytest

from lm.studies.scaling.forecasts import forecast, most_expensive, rolling
from lm.studies.scaling.law import Law, UndeterminedError
from lm.studies.scaling.runs import Runs

LAW = Law(A=60, B=700, E=0.75, alpha=0.5, beta=0.45)


def runs_of(sizes: int, token_counts: int) -> Runs:
    axes = np.meshgrid(np.geomspace(3e4, 3e6, sizes), np.geomspace(1e6, 6e7, token_counts))
    N, D = (values.ravel() for values in axes)
    return Runs(N, D, np.asarray(LAW.loss(N, D)))


@pytest.mark.parametrize("irreducible", [None, 0.75])
def test_the_fifth_with_the_most_flops_is_predicted_from_the_others(irreducible):
    runs = runs_of(4, 4)
    found = forecast(runs, most_expensive(runs), irreducible)
    assert len(found.future) == 4 and len(found.runs) == 12
    assert found.future.flops.min() >= found.runs.flops.max()
    assert np.abs(found.errors).max() < 1e-6


def test_errors_are_predicted_minus_measured():
    runs = runs_of(4, 4)
    last = int(np.argmax(runs.flops))
    runs.loss[last] *= 1.25
    found = forecast(runs, most_expensive(runs), None)
    assert found.relative_errors[-1] == pytest.approx(-0.2, abs=1e-5)
    assert found.errors[-1] == pytest.approx(-0.2 * runs.loss[last], abs=1e-5)
    assert found.mean_absolute_relative_error == pytest.approx(0.05, abs=1e-5)


def test_seeds_of_a_cell_are_held_out_together():
    runs = runs_of(4, 4)
    twice = runs.select(np.repeat(np.arange(16), 2))
    assert np.flatnonzero(most_expensive(twice)).tolist() == [14, 15, 22, 23, 28, 29, 30, 31]


def test_of_no_runs_none_are_the_most_expensive():
    none = runs_of(1, 1).select(np.array([], dtype=int))
    assert most_expensive(none).tolist() == []


def test_each_size_is_predicted_from_the_smaller_ones_where_these_suffice():
    runs = runs_of(5, 4)
    free, known = rolling(runs, None), rolling(runs, LAW.E)
    sizes = np.unique(runs.parameters)
    assert [forecast.future.parameters[0] for forecast in free] == sizes[3:].tolist()
    assert [forecast.future.parameters[0] for forecast in known] == sizes[2:].tolist()
    assert all(np.abs(forecast.errors).max() < 1e-5 for forecast in free + known)
    assert all(forecast.runs.parameters.max() < forecast.future.parameters.min() for forecast in free)


def test_without_the_largest_cells_there_may_be_too_few_runs():
    runs = runs_of(3, 3).select(np.array([0, 1, 2, 3, 4, 6, 8]))
    with pytest.raises(UndeterminedError, match="expected"):
        forecast(runs, most_expensive(runs), None)
