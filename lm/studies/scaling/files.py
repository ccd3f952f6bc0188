"""The JSON file of a fitted scaling law, with what a prediction needs: intervals, ranges, and earlier forecasts."""

import json
import re
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from lm.atomic import write_text
from lm.schema import read_json
from lm.studies.scaling.analysis import Analysis
from lm.studies.scaling.law import Law

ADVICE = "make it with: lm fit FILE.csv --json FILE.json"

_LAWS = 400  # samples of the bootstrap that are kept


class HeldOut(TypedDict):
    """A run that was predicted from cheaper ones."""

    parameters: float
    tokens: float
    loss: float
    predicted: float


class SavedFit(TypedDict):
    """A fit as it is saved.

    Attributes:
        objective: The sum of the Huber losses.
        irreducible: The value that E was fixed at, or None.
        counted: The parameters that N counts, in words.
        unit: The unit of the loss, or "".
        intervals: The 95% intervals of A, B, E, alpha and beta.
        runs: The number of runs.
        ranges: The lowest and the highest parameters, tokens and flops of the runs.
        held_out: The most expensive runs, and what the cheaper ones predicted.
        laws: Values of A, B, E, alpha and beta for samples of the bootstrap.
    """

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    objective: float
    irreducible: float | None
    counted: str
    unit: str
    intervals: dict[str, list[float]]
    runs: int
    ranges: dict[str, list[float]]
    held_out: list[HeldOut]
    laws: list[list[float]]


def saved(analysis: Analysis, counted: str, unit: str) -> SavedFit:
    """The analysis in the form of the file."""
    law, runs, forecast = analysis.fit.law, analysis.runs, analysis.held_out
    held_out: list[HeldOut] = []
    if not isinstance(forecast, str):
        future = forecast.future
        rows = zip(*(values.tolist() for values in (future.parameters, future.tokens, future.loss, forecast.predicted)))
        held_out = [HeldOut(parameters=N, tokens=D, loss=loss, predicted=guess) for N, D, loss, guess in rows]
    ranges = {"parameters": runs.parameters, "tokens": runs.tokens, "flops": runs.flops}
    return SavedFit(
        A=law.A,
        B=law.B,
        E=law.E,
        alpha=law.alpha,
        beta=law.beta,
        objective=analysis.fit.objective,
        irreducible=analysis.irreducible,
        counted=counted,
        unit=unit,
        intervals={name: list(ends) for name, ends in analysis.intervals.items()},
        runs=len(runs),
        ranges={name: [float(values.min()), float(values.max())] for name, values in ranges.items()},
        held_out=held_out,
        laws=[
            [float(f"{value:.7g}") for value in (sample.A, sample.B, sample.E, sample.alpha, sample.beta)]
            for sample in analysis.laws[:_LAWS]
        ],
    )


def write_fit(path: Path, content: dict[str, Any]) -> None:
    """Write a fit as JSON in which every list of numbers is on one line."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_text(path, re.sub(r"\[([^\[\]{}]*)\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")


def read_fit(path: Path) -> SavedFit:
    """Read a file that `write_fit` wrote.

    Raises:
        UserError: the file is missing, or is not one of a fit.
    """
    return read_json(path, SavedFit, ADVICE, ignore_unknown_keys=True)


def laws_of(fit: SavedFit) -> tuple[Law, list[Law]]:
    """The fitted law, and those of the bootstrap."""
    law = Law(fit["A"], fit["B"], fit["E"], fit["alpha"], fit["beta"])
    return law, [Law(*values) for values in fit["laws"]]
