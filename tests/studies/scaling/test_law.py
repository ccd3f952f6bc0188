import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import check_grad, minimize

from lm.errors import UserError
from lm.studies.scaling.law import Law, UndeterminedError, fit
from lm.studies.scaling.minimizer import DELTA, Problem

CHINCHILLA = Path(__file__).resolve().parents[4] / "shared/data/scaling/chinchilla.csv"
LAW = Law(A=406.4, B=410.7, E=1.69, alpha=0.34, beta=0.28)  # of Hoffmann et al. 2022
NAMES = ("A", "B", "E", "alpha", "beta")


def grid(
    law: Law, sizes: int = 4, token_counts: int = 4, noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    axes = np.meshgrid(np.geomspace(3e4, 3e6, sizes), np.geomspace(1e6, 6e7, token_counts))
    N, D = (values.ravel() for values in axes)
    scatter = np.random.default_rng(0).standard_normal(len(N))
    return N, D, law.loss(N, D) * np.exp(noise * scatter)


def assert_same(found: Law, law: Law) -> None:
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-6), name


@pytest.mark.parametrize("law", [LAW, Law(20, 1200, 0.543, 0.45, 0.55), Law(14, 200, 0.58, 0.52, 0.21)])
@pytest.mark.parametrize("is_known", [False, True])
def test_a_law_is_recovered_from_losses_without_noise(law, is_known):
    found = fit(*grid(law), irreducible=law.E if is_known else None)
    assert_same(found.law, law)
    assert 0 <= found.objective < 1e-15


@pytest.mark.parametrize(
    "start",
    [None, [5, 5, 0, 0.5, 0.5], [3, 8, 0, 0.3, 0.6], [8, 3, -1, 0.7, 0.2]],
    ids=["from the result", "from afar", "small A", "small B"],
)
def test_the_minimum_is_that_of_scipy(start):
    N, D, loss = grid(LAW, noise=0.01)

    def objective(theta):
        a, b, e, alpha, beta = theta
        terms = [a - alpha * np.log(N), b - beta * np.log(D), np.full(len(N), e)]
        error = np.abs(np.logaddexp.reduce(terms) - np.log(loss))
        return np.sum(np.where(error <= DELTA, error**2 / 2, DELTA * (error - DELTA / 2)))

    found = fit(N, D, loss)
    law = found.law
    theta = [math.log(law.A), math.log(law.B), math.log(law.E), law.alpha, law.beta]
    assert objective(theta) == pytest.approx(found.objective, rel=1e-9)
    options = {"maxiter": 2000, "maxfev": 4000, "xatol": 1e-9, "fatol": 1e-13}
    result = minimize(objective, start or theta, method="Nelder-Mead", options=options)
    assert result.fun > found.objective * (1 - 1e-6)


def test_the_derivatives_are_those_of_differences():
    N, D, loss = grid(LAW, noise=0.001)
    problem = Problem(np.log(N), np.log(D), np.log(loss), None)
    weights = np.random.default_rng(1).random((1, len(N)))
    theta = problem.theta(*(getattr(LAW, name) for name in NAMES)) + 1e-4

    def gradient(at):
        return problem.derivatives(at[None], weights)[0][0]

    def slope_of(unknown):
        return lambda at: gradient(at)[unknown], lambda at: problem.derivatives(at[None], weights)[1][0, unknown]

    assert check_grad(lambda at: problem.objective(at[None], weights)[0], gradient, theta) < 1e-6
    for unknown in range(5):
        assert check_grad(*slope_of(unknown), theta, epsilon=1e-9) < 1e-4


def test_a_run_that_is_far_off_hardly_changes_the_fit():
    N, D, loss = grid(LAW, 5, 5)
    loss[7] *= 1.5
    assert pytest.approx(LAW.E, rel=0.01) == fit(N, D, loss).law.E


def test_loss_and_optimum_by_hand():
    law = Law(A=400, B=1000, E=1.5, alpha=0.5, beta=0.5)
    assert law.loss(1e4, 1e6) == pytest.approx(6.5)
    # With equal exponents, A / sqrt(N) = B / sqrt(D), so D = 6.25 N, and 6 N D = 37.5 N².
    N, D = law.compute_optimal(37.5e12)
    assert (pytest.approx(1e6), pytest.approx(6.25e6)) == (N, D)
    assert law.optimal_tokens(1e6) == pytest.approx(6.25e6) and law.optimal_parameters(6.25e6) == pytest.approx(1e6)
    # At this optimum, both terms are 0.4.
    assert law.parameters_for_loss(2.3) == pytest.approx(1e6)
    assert law.parameters_for_loss(1.5) == math.inf


def test_no_other_size_is_better_than_the_optimum():
    N, D = LAW.compute_optimal(1e20)
    assert pytest.approx(1e20) == 6 * N * D
    assert LAW.loss(N, D) < min(LAW.loss(N * 1.01, D / 1.01), LAW.loss(N / 1.01, D * 1.01))
    assert LAW.optimal_tokens(N) == pytest.approx(D) and LAW.optimal_parameters(D) == pytest.approx(N)
    assert LAW.parameters_for_loss(float(LAW.loss(N, D))) == pytest.approx(N)


@pytest.mark.parametrize(
    ("N", "D", "irreducible", "message"),
    [
        (
            [1, 1, 2, 2],
            [1, 2, 1, 3],
            None,
            "parameters: expected 3 or more different values for a fit of A, B, E, alpha",
        ),
        (
            [1, 2, 3],
            [1, 1, 1],
            0.1,
            "tokens: expected 2 or more different values for a fit of A, B, alpha and beta, got 1",
        ),
        ([1, 1, 2, 3, 3], [1, 2, 2, 2, 3], None, "runs: expected 6 or more that differ in parameters or tokens"),
        ([1, 1, 2, 2, 2], [1, 2, 1, 2, 2], 0.1, "runs: expected 5 or more that differ in parameters or tokens"),
        ([1, 2, 4, 8, 16, 32], [2, 4, 8, 16, 32, 64], None, "runs: expected parameters and tokens that vary indep"),
    ],
)
def test_runs_that_do_not_determine_the_law_are_refused(N, D, irreducible, message):
    with pytest.raises(UndeterminedError) as error:
        fit(np.array(N, dtype=float), np.array(D, dtype=float), np.ones(len(N)), irreducible)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("irreducible", [-0.1, 1.0, 2.0, math.nan])
@pytest.mark.parametrize("runs", [2, 16])
def test_a_known_e_that_is_not_below_the_losses_is_an_error_of_the_data(irreducible, runs):
    N, D, _ = (values[:runs] for values in grid(LAW))
    with pytest.raises(UserError, match="irreducible loss: expected 0 or more and less than the lowest loss, 1, ") as e:
        fit(N, D, np.ones(runs), irreducible)
    assert not isinstance(e.value, UndeterminedError)


@pytest.mark.slow
@pytest.mark.skipif(not CHINCHILLA.exists(), reason="needs the points of Hoffmann et al.")
def test_the_published_fit_of_the_points_of_hoffmann_et_al():
    """Besiroglu et al. 2024, who leave out the five points with the highest loss."""
    rows = pd.read_csv(CHINCHILLA).sort_values("loss").iloc[:-5]
    N, flops, loss = (rows[name].to_numpy() for name in ("Model Size", "Training FLOP", "loss"))
    start = time.process_time()
    found = fit(N, flops / (6 * N), loss)
    assert time.process_time() - start < 0.2  # about 0.05 s on a machine that does nothing else
    assert found.objective <= 1.01827402e-3
    published = Law(A=477.84, B=2143.86, E=1.81724, alpha=0.34731, beta=0.36718)
    for name in NAMES:
        assert getattr(found.law, name) == pytest.approx(getattr(published, name), rel=3e-4)
