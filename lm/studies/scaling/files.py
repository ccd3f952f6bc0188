"""The JSON file of a fitted scaling law, with what a prediction needs: intervals, ranges, and earlier forecasts."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.atomic import write_text
from lm.errors import UserError, quote
from lm.schema import read_json, validate
from lm.studies.scaling.analysis import Analysis
from lm.studies.scaling.law import Law

ADVICE = "make it with: lm fit FILE.csv --json FILE.json"

_LAWS = 400  # samples of the bootstrap that are kept


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """The lowest and the highest parameters, tokens and FLOPs (6 N D) of the runs."""

    parameters: list[float]
    tokens: list[float]
    flops: list[float]

    def __post_init__(self) -> None:
        for name in ("parameters", "tokens", "flops"):
            ends = getattr(self, name)
            if len(ends) != 2 or not 0 < ends[0] <= ends[1]:
                raise ValueError(f"{name}: expected the lowest and the highest of positive numbers, got {quote(ends)}")


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A run that was predicted from cheaper ones."""

    parameters: float
    tokens: float
    loss: float
    predicted: float

    def __post_init__(self) -> None:
        _check_positive(self, ("parameters", "tokens", "loss", "predicted"))


@dataclass(frozen=True, kw_only=True)
class SavedFit:
    """A fit as it is saved.

    Attributes:
        objective: The sum of the Huber losses.
        irreducible: The value that E was fixed at, or None.
        counted: The parameters that N counts, in words.
        unit: The unit of the loss, or "".
        intervals: The 95% intervals of A, B, E, alpha and beta.
        runs: The number of runs.
        ranges: The ranges of the runs.
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
    ranges: Ranges
    held_out: list[HeldOut]
    laws: list[list[float]]

    def __post_init__(self) -> None:
        _check_positive(self, ("A", "B", "alpha", "beta"))
        if self.E < 0:
            raise ValueError(f"E: expected 0 or more, got {self.E:g}")
        if self.runs < 1:
            raise ValueError(f"runs: expected 1 or more, got {self.runs}")
        for index, values in enumerate(self.laws):
            if len(values) != 5 or min(values) < 0 or 0 in (*values[:2], *values[3:]):
                raise ValueError(
                    f"laws[{index}]: expected the values of A, B, E, alpha and beta, all positive but E, which may be "
                    f"0, got {quote(values)}"
                )

    @property
    def law(self) -> Law:
        """The fitted law."""
        return Law(self.A, self.B, self.E, self.alpha, self.beta)

    @property
    def samples(self) -> list[Law]:
        """The laws that were fitted to samples of the bootstrap."""
        return [Law(*values) for values in self.laws]


def saved(analysis: Analysis, counted: str, unit: str) -> SavedFit:
    """The analysis in the form of the file."""
    law, runs, forecast = analysis.fit.law, analysis.runs, analysis.held_out
    held_out: list[HeldOut] = []
    if not isinstance(forecast, str):
        future = forecast.future
        rows = zip(*(values.tolist() for values in (future.parameters, future.tokens, future.loss, forecast.predicted)))
        held_out = [HeldOut(parameters=N, tokens=D, loss=loss, predicted=guess) for N, D, loss, guess in rows]
    parameters, tokens, flops = (
        [float(values.min()), float(values.max())] for values in (runs.parameters, runs.tokens, runs.flops)
    )
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
        ranges=Ranges(parameters=parameters, tokens=tokens, flops=flops),
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


def read_fit(path: Path, advice: str = ADVICE) -> SavedFit:
    """Read a file that `write_fit` wrote.

    Args:
        advice: What to do if the file is missing or its content is wrong.

    Raises:
        UserError: the file is missing, is not one of a fit, or says that the runs did not determine a law.
    """
    if reason := read_json(path, dict[str, Any], advice).get("reason"):
        raise UserError(f"{path}: holds no law: {reason}")
    return read_json(path, SavedFit, advice, ignore_unknown_keys=True)


def read_fits(path: Path, advice: str) -> dict[str, SavedFit]:
    """Read all fits of a file that the stage scaling_law wrote, without the samples of the bootstrap.

    Args:
        advice: What to do if the file is missing or its content is wrong.

    Returns:
        The fits by count of parameters and by whether E was known, such as "parameters, E free".

    Raises:
        UserError: the file is missing, or is not one of several fits.
    """
    fits = read_json(path, dict[str, Any], advice).get("fits")
    if not isinstance(fits, dict):
        raise UserError(f"{path}: fits: missing key, expected the fits; {advice}")
    try:
        return validate(dict[str, SavedFit], {name: {**values, "laws": []} for name, values in fits.items()})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: fits.{error}; {advice}") from error


def _check_positive(values: object, names: tuple[str, ...]) -> None:
    for name in names:
        if (value := getattr(values, name)) <= 0:
            raise ValueError(f"{name}: expected a positive number, got {value:g}")
