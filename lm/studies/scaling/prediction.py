"""What a fitted scaling law says about a run that has not been made."""

import math
from dataclasses import dataclass, fields

import numpy as np

from lm.errors import UserError
from lm.studies.scaling.bootstrap import interval
from lm.studies.scaling.files import SavedFit
from lm.studies.scaling.law import FLOPS_PER_WEIGHT, Law

# So that only laws with absurd exponents give answers beyond the range of floats.
_SMALLEST, _LARGEST = 1e-50, 1e50


@dataclass(frozen=True)
class Question:
    """What is given about a run: one of the numbers, or parameters and tokens; what is not given is None."""

    flops: float | None = None
    parameters: float | None = None
    tokens: float | None = None
    loss: float | None = None

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        names = [name for name, value in given.items() if value is not None]
        if len(names) != 1 and names != ["parameters", "tokens"]:
            got = ", ".join(f"--{name}" for name in names) or "none"
            raise UserError(
                "arguments: expected one of --flops, --parameters, --tokens and --loss, or --parameters with --tokens, "
                f"got {got}"
            )
        for name in names:
            if not 0 < given[name] < math.inf:
                raise UserError(f"--{name}: expected a positive number, got {given[name]:g}")
            if not _SMALLEST <= given[name] <= _LARGEST:
                raise UserError(f"--{name}: expected {_SMALLEST:g} to {_LARGEST:g}, got {given[name]:g}")

    def answer(self, law: Law) -> tuple[float, float, float]:
        """The parameters, the tokens and the loss of the run; infinite if no run has the loss."""
        with np.errstate(
            over="ignore", divide="ignore", invalid="ignore"
        ):  # a sample of the bootstrap may need absurdly many
            if self.flops is not None:
                N, D = law.compute_optimal(self.flops)
            elif self.loss is not None:
                N = law.parameters_for_loss(self.loss)
                D = law.optimal_tokens(N)
            elif self.parameters is not None:
                N = self.parameters
                D = law.optimal_tokens(N) if self.tokens is None else self.tokens
            elif self.tokens is not None:
                N, D = law.optimal_parameters(self.tokens), self.tokens
            return float(N), float(D), float(law.loss(np.float64(N), np.float64(D)))


def predict(fit: SavedFit, question: Question) -> str:
    """The answer with its intervals, how far it is from the runs of the fit, and how earlier forecasts did.

    Raises:
        UserError: no model reaches the loss, or the answer is beyond the range of numbers.
    """
    law = fit.law
    if question.loss is not None and question.loss <= law.E:
        raise UserError(
            f"--loss: expected more than the irreducible loss {law.E:.4f}, which no model goes below, got "
            f"{question.loss:g}"
        )
    N, D, loss = question.answer(law)
    flops = FLOPS_PER_WEIGHT * N * D
    if not all(0 < value < math.inf for value in (N, D, flops, loss)):
        raise UserError(
            "arguments: expected a run whose parameters, tokens and FLOPs are within the range of numbers, got "
            f"{N:.3g} parameters and {D:.3g} tokens; ask for a run that is closer to those of the fit"
        )
    ranges = np.array([question.answer(sample) for sample in fit.samples]).reshape(-1, 3)
    with np.errstate(over="ignore", invalid="ignore"):
        flops_ranges = FLOPS_PER_WEIGHT * ranges[:, 0] * ranges[:, 1]
    lines = []
    for name, value, values, given, write in (
        (fit.counted, N, ranges[:, 0], question.parameters, _count),
        ("tokens", D, ranges[:, 1], question.tokens, _count),
        ("FLOPs", flops, flops_ranges, question.flops, "{:.3g}".format),
        (f"loss, {fit.unit}" if fit.unit else "loss", loss, ranges[:, 2], question.loss, _loss),
    ):
        if given is not None:
            note = "given"
        elif name == "FLOPs" and question.parameters and question.tokens:
            note = "6 N D"
        elif not len(values):
            note = "the fit has no samples for an interval"
        else:
            low, high = interval(values)
            note = f"95% interval {write(low)} to {write(high)}"
        lines.append((name, write(value), note))
    width = max(len(name) for name, _, _ in lines)
    number = max(len(value) for _, value, _ in lines)
    text = [f"{name:{width}}  {value:>{number}}  {note}" for name, value, note in lines]
    notes = [_distance(fit, N, D, flops), _history(fit), *filter(None, [law.undetermined])]
    return "\n".join([*text, "", *notes]) + "\n"


def _count(value: float) -> str:
    """All digits of a number of parameters or tokens, unless there are many or only a fraction."""
    return f"{value:,.0f}" if 10 <= value < 1e15 else f"{value:.3g}"


def _loss(value: float) -> str:
    return f"{value:.4f}" if 0.001 <= value < 1e6 else f"{value:.4g}"


def _distance(fit: SavedFit, N: float, D: float, flops: float) -> str:
    """Whether the run is within the ranges of the fit."""
    parts = []
    ranges = fit.ranges
    for label, value, (low, high) in (
        ("parameters", N, ranges.parameters),
        ("tokens", D, ranges.tokens),
        ("FLOPs", flops, ranges.flops),
    ):
        if value > high * (1 + 1e-9):
            parts.append(f"{label} {value / high:,.3g} times above the largest of the fit ({high:.3g})")
        elif value < low * (1 - 1e-9):
            parts.append(f"{label} {low / value:,.3g} times below the smallest of the fit ({low:.3g})")
    if not parts:
        return f"Within the range of the {fit.runs} runs of the fit."
    return f"This extrapolates beyond the {fit.runs} runs of the fit: {', '.join(parts)}."


def _history(fit: SavedFit) -> str:
    """How well the fit of the cheaper runs predicted the most expensive ones."""
    if not fit.held_out:
        return "There were too few runs to check an earlier forecast."
    errors = [100 * (run.predicted / run.loss - 1) for run in fit.held_out]
    worst = max(errors, key=abs)
    mean = sum(map(abs, errors)) / len(errors)
    if len(errors) == 1:
        return f"An earlier forecast, of the most expensive run from the cheaper ones, was off by {worst:+.2f}%."
    return (
        f"Earlier forecasts, of the {len(errors)} most expensive runs from the cheaper ones, had a mean absolute "
        f"error of {mean:.2f}%; the largest error was {worst:+.2f}%."
    )
