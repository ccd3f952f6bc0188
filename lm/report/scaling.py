"""The section on the scaling law: how the loss depends on parameters and tokens, and how well the law predicts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lm.report.blocks import Block, Facts, Plot, Section, Table
from lm.report.curve import plot
from lm.report.numbers import count, short
from lm.report.run import Run
from lm.schema import read_json
from lm.studies.cells_table import read_cells
from lm.studies.scaling.analysis import is_negligible
from lm.studies.scaling.bootstrap import interval
from lm.studies.scaling.files import SavedFit, read_fit, read_fits
from lm.studies.scaling.isoflop import isoflops
from lm.studies.scaling.picture import (
    CURVES,
    FORECASTS,
    ISOFLOPS,
    draw_curves,
    draw_forecasts,
    draw_isoflops,
    draw_runs,
    irreducible_loss,
)
from lm.studies.scaling.runs import Runs
from lm.studies.scaling.study import COUNTS, MAIN_COUNT, usable_runs

_COMMAND = "dvc repro scaling_law"
_ADVICE = f"make it with: {_COMMAND}"
_FILE = "metrics/scaling.json"
_GIVEN = "Where E is given, it is the entropy of the text; a fitted E shows what such a fit finds without knowing it. "


def _cells(run: Run) -> pd.DataFrame:
    return read_cells(run.folder / "metrics" / "scale_cells.csv")


def _undetermined(run: Run) -> str | None:
    """Why the runs do not determine a law, or None if they do."""
    return read_json(run.folder / _FILE, dict[str, Any], _ADVICE).get("reason")


def _main_fit(run: Run) -> SavedFit:
    return read_fit(run.folder / _FILE, _ADVICE)


def _fits(run: Run) -> dict[str, SavedFit]:
    """The fits of the main count of parameters, by what E is."""
    fits = read_fits(run.folder / _FILE, _ADVICE)
    names = {"E fitted": f"{MAIN_COUNT}, E free", "E given": f"{MAIN_COUNT}, E known"}
    return {label: fits[name] for label, name in names.items() if name in fits}


def _finding(run: Run) -> str:
    if reason := _undetermined(run):
        return f"No scaling law is fitted: {reason}."
    fit = _main_fit(run)
    if not fit.held_out:
        return (
            f"A scaling law is fitted to {fit.runs} runs, too few to predict the most expensive ones from the others."
        )
    held_out = len(fit.held_out)
    entropy = " and the entropy of the text" if fit.irreducible is not None else ""
    return (
        f"From {fit.runs - held_out} runs{entropy}, the scaling law predicts the loss of the "
        f"{f'{held_out} most expensive runs' if held_out > 1 else 'most expensive run'} with an error of "
        f"{np.mean(np.abs(_relative_errors(fit))):.1%}{' on average' if held_out > 1 else ''}."
    )


def _relative_errors(fit: SavedFit) -> np.ndarray:
    """Predicted minus measured loss of the runs that were held out, as shares of the measured loss (n,)."""
    return np.array([held_out.predicted / held_out.loss - 1 for held_out in fit.held_out])


def _plots(run: Run) -> list[Block]:
    cells = _cells(run)
    if _undetermined(run):
        panels = [("scaling-runs", "Loss over tokens", lambda axes: draw_runs(axes, cells), _described(cells))]
    else:
        panels = _panels(cells, _main_fit(run), _fits(run))
    return [
        Plot(name=name, title=title, figure=plot(draw), alt=alt, command=_COMMAND) for name, title, draw, alt in panels
    ]


def _described(cells: pd.DataFrame) -> str:
    return (
        f"The loss of {len(cells)} runs after {short(cells['tokens'].min())} to {short(cells['tokens'].max())} tokens"
    )


def _panels(
    cells: pd.DataFrame, fit: SavedFit, fits: dict[str, SavedFit]
) -> list[tuple[str, str, Callable[[Axes], None], str]]:
    """The name, the title, the drawing and the description of each figure."""
    runs = usable_runs(cells, MAIN_COUNT)
    levels = isoflops(runs, fit.law)
    irreducible = irreducible_loss(is_entropy=fit.irreducible is not None)
    forecasts = {
        label: (np.array([one.loss for one in of.held_out]), np.array([one.predicted for one in of.held_out]))
        for label, of in fits.items()
        if of.held_out
    }
    errors = [f"{label}, {np.mean(np.abs(_relative_errors(fits[label]))):.1%}" for label in forecasts]
    optima = [f"{short(level.optimum)} for {level.flops:.2g} FLOPs" for level in levels if level.optimum is not None]
    return [
        (
            "scaling-law",
            CURVES,
            lambda axes: draw_curves(axes, runs, fit.law, irreducible, fit.unit),
            f"{_described(cells)}, from {runs.loss.max():.3g} down to {runs.loss.min():.3g} {fit.unit}, with the "
            f"curves of the law and the {irreducible}, {fit.E:.3g}",
        ),
        (
            "scaling-forecasts",
            FORECASTS,
            lambda axes: draw_forecasts(axes, forecasts),
            "Predicted over measured loss; mean absolute error: " + (", ".join(errors) or "no forecast"),
        ),
        (
            "scaling-isoflop",
            ISOFLOPS,
            lambda axes: draw_isoflops(axes, levels, COUNTS[MAIN_COUNT], fit.unit),
            f"The loss over the {COUNTS[MAIN_COUNT]}; best sizes: "
            + (", ".join(optima) or "none is between the sizes"),
        ),
    ]


def _law(run: Run) -> list[Block]:
    if _undetermined(run):
        return []
    fit, fits = _main_fit(run), _fits(run)
    runs = usable_runs(_cells(run), MAIN_COUNT)
    exponents = [law.beta / (law.alpha + law.beta) for law in fit.samples]
    low, high = interval(exponents)
    facts = [
        ("law", "loss = E + A / N^alpha + B / D^beta"),
        ("N", fit.counted),
        ("D", "tokens of the training"),
        ("runs", f"{fit.runs}, with {_range(fit.ranges.parameters)} parameters and {_range(fit.ranges.tokens)} tokens"),
        ("entropy of the text", "not known" if fit.irreducible is None else f"{fit.irreducible:.4f} bits per byte"),
        (
            "compute-optimal N grows as",
            f"FLOPs^{fit.beta / (fit.alpha + fit.beta):.2f} ({low:.2f} to {high:.2f})",
        ),
    ]
    rows = [(name, *(_value(name, of, runs) for of in fits.values())) for name in ("E", "A", "B", "alpha", "beta")]
    return [
        Facts(title="The law", rows=facts, note="In parentheses: the 95% interval.", command=_COMMAND),
        Table(
            title="Fits, with 95% intervals",
            header=("symbol", *fits),
            rows=rows,
            note=f"{_GIVEN if 'E given' in fits else ''}The intervals come from a bootstrap over the cells. Fits with "
            "other counts of the parameters are in metrics/scaling.md.",
            command=_COMMAND,
        ),
        *_held_out(fits),
    ]


def _range(ends: list[float]) -> str:
    return f"{short(ends[0])} to {short(ends[1])}"


def _value(name: str, fit: SavedFit, runs: Runs) -> str:
    value, (low, high) = getattr(fit, name), fit.intervals[name]
    if name == "E" and fit.irreducible is not None:
        return f"{value:.4f}, given"
    if name == "E" and is_negligible((low, high), runs.loss):
        return "0, its lower bound"  # an interval would feign precision
    return f"{value:.4g} ({low:.4g} to {high:.4g})"


def _held_out(fits: dict[str, SavedFit]) -> list[Block]:
    """The runs that were predicted from cheaper ones, one by one."""
    predicted = {label: fit for label, fit in fits.items() if fit.held_out}
    if not predicted:
        return []
    rows = [
        (
            count(runs[0].parameters),
            count(runs[0].tokens),
            f"{runs[0].loss:.4f}",
            *(f"{run.predicted:.4f} ({run.predicted / run.loss - 1:+.2%})" for run in runs),
        )
        for runs in zip(*(fit.held_out for fit in predicted.values()), strict=True)
    ]
    return [
        Table(
            title="Runs that the fit had not seen",
            header=("N", "D", "measured", *(f"predicted, {label}" for label in predicted)),
            rows=rows,
            note="The fifth of the cells with the most FLOPs, predicted by a fit to all others, in bits per byte; in "
            "parentheses, the error as a share of the measured loss.",
            command=_COMMAND,
        )
    ]


SCALING = Section("scaling", "Scaling law", _finding, [_plots, _law])
