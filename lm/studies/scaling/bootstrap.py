"""How certain a fitted scaling law is: intervals by bootstrap (Efron and Tibshirani 1993, chapter 13).

A cell is the runs with the same parameters and tokens, which differ in their seeds. A sample draws as many cells as
there are, with replacement, and takes all runs of each cell that it draws. The runs of a cell are not drawn one by one:
they share what the law does not describe, such as a learning rate that suits this size less well, so they are not
independent observations of the law; and drawing at both levels would count the scatter between seeds twice (Davison and
Hinkley 1997, section 3.8).
"""

from collections.abc import Iterable

import numpy as np
from tqdm import tqdm

from lm.studies.scaling.law import Law
from lm.studies.scaling.minimizer import Problem, minimize
from lm.studies.scaling.runs import Runs

Interval = tuple[float, float]

_TOGETHER = 1000  # samples per update of the progress bar


def bootstrap(runs: Runs, law: Law, irreducible: float | None, count: int, seed: int = 0) -> list[Law]:
    """Fit `count` samples of the cells, each search starting at `law`, the fit of all runs.

    A sample of few cells may not determine all of the law; then its fit is one of the equally good ones near `law`.
    """
    problem = Problem(np.log(runs.parameters), np.log(runs.tokens), np.log(runs.loss), irreducible)
    cells = runs.cells()
    num_cells = int(cells.max()) + 1
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(num_cells, np.full(num_cells, 1 / num_cells), size=count)
    start = problem.theta(law.A, law.B, law.E, law.alpha, law.beta)
    laws: list[Law] = []
    with tqdm(total=count, desc="bootstrap", unit="fit", disable=None, delay=1, leave=False) as progress:
        for weights in np.split(draws[:, cells].astype(float), range(_TOGETHER, count, _TOGETHER)):
            theta, _ = minimize(problem, np.tile(start, (len(weights), 1)), weights)
            laws += [Law(*values) for values in problem.laws(theta).tolist()]
            progress.update(len(weights))
    return laws


def interval(values: Iterable[float]) -> Interval:
    """The 95% percentile interval of bootstrap values, which may be infinite."""
    low, high = np.quantile(np.fromiter(values, dtype=float), [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def intervals(laws: list[Law]) -> dict[str, Interval]:
    """The intervals of A, B, E, alpha and beta."""
    return {name: interval(getattr(law, name) for law in laws) for name in ("A", "B", "E", "alpha", "beta")}
