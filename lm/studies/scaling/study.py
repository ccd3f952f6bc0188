"""The scaling law of a study's cells, for each way to count parameters, with E fitted and with E known.

The exponents depend on which parameters N counts, above all for small models, in which embeddings and head are a large
part (Porian et al. 2024; Pearce and Song 2024). All three counts are fitted. The main one is that of blocks and head:
the compute-optimal size follows from C = 6 N D, where N counts the weights of matrix products. The lookup of an
embedding costs nothing, and the scores of attention are left out.

The entropy of the text, if it is known, is a lower bound of the expected loss of any model. It is E only if the context
holds whole documents; studies/scaling is configured so. So where it is known, the main fit has E fixed; what a fit with
E free finds shows how far such a fit can be believed elsewhere. Both are decided beforehand, and not by which fit
predicts better.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lm.errors import UserError
from lm.studies.scaling.analysis import Analysis, analyze
from lm.studies.scaling.forecasts import most_expensive
from lm.studies.scaling.law import check_irreducible
from lm.studies.scaling.runs import Runs

COUNTS = {
    "parameters_without_embeddings": "parameters of blocks and head",
    "parameters": "all parameters",
    "parameters_of_blocks": "parameters of blocks",
}
MAIN_COUNT = "parameters_without_embeddings"


@dataclass(frozen=True)
class Study:
    """The analyses by count of parameters, with E fitted and, if the entropy of the text is known, with E fixed.

    Attributes:
        entropy: The entropy of the text in bits per byte, if it is known.
        left_out: A description of each run that has no loss to fit.
        free: The analyses with E fitted.
        known: The analyses with E fixed at `entropy`; empty if that is not known.
    """

    entropy: float | None
    left_out: list[str]
    free: dict[str, Analysis]
    known: dict[str, Analysis]

    @property
    def main(self) -> Analysis:
        return (self.known or self.free)[MAIN_COUNT]


def analyze_cells(cells: pd.DataFrame, bootstraps: int) -> Study:
    """Fit the law to the table that `read_cells` returns; runs that diverged or have no finite loss are left out.

    Raises:
        UserError: the cells are of several variants, or a loss is not above the entropy of the text.
        UndeterminedError: they do not determine the law.
    """
    if len(variants := cells["variant"].unique()) > 1:
        raise UserError(f"variant: expected cells of one variant, got {', '.join(variants)}; fit each one by itself")
    left_out = [
        f"{row['size']}, {row['tokens']:,} tokens, seed {row['seed']}, "
        f"{'which diverged' if row['diverged'] else 'which has no finite loss'}"
        for row in cells[~_is_usable(cells)].to_dict("records")
    ]
    floor = float(cells["floor"].iloc[0])
    entropy = floor if np.isfinite(floor) else None
    if entropy is not None:
        check_irreducible(entropy, cells[_is_usable(cells)]["loss"].to_numpy(dtype=float))
    runs_by_count = {count: usable_runs(cells, count) for count in COUNTS}
    # The order of the FLOPs depends on the count; with the same runs held out, the errors can be compared.
    is_held_out = most_expensive(runs_by_count[MAIN_COUNT])
    free, known = {}, {}
    for count, runs in runs_by_count.items():
        free[count] = analyze(runs, None, bootstraps, is_held_out)
        if entropy is not None:
            known[count] = analyze(runs, entropy, bootstraps, is_held_out)
    return Study(entropy, left_out, free, known)


def usable_runs(cells: pd.DataFrame, count: str) -> Runs:
    """The runs that have a loss to fit.

    Args:
        cells: The table that `read_cells` returns.
        count: The column with the parameters that N counts, one of `COUNTS`.
    """
    used = cells[_is_usable(cells)]
    return Runs(*(used[name].to_numpy(dtype=float) for name in (count, "tokens", "loss")))


def _is_usable(cells: pd.DataFrame) -> pd.Series:
    return np.isfinite(cells["loss"]) & (cells["loss"] > 0) & (cells["diverged"] == 0)
