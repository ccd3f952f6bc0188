"""Pictures of a scaling law: its fit, its forecasts, and the loss at equal FLOPs."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from lm.pictures import save_figure
from lm.studies.scaling.analysis import Analysis
from lm.studies.scaling.forecasts import Forecast
from lm.studies.scaling.isoflop import IsoFlop
from lm.studies.scaling.law import Law
from lm.studies.scaling.runs import Runs
from lm.studies.scaling.study import COUNTS, MAIN_COUNT, Study

# For each label, the measured and the predicted losses of the runs that were held out.
Forecasts = Mapping[str, tuple[np.ndarray, np.ndarray]]

# Titles.
CURVES = "Runs and fitted law"
FORECASTS = "Most expensive runs, predicted from the others"
ISOFLOPS = "Runs with about the same FLOPs"

_LEGEND_ENTRIES = 8
# From small to large. The usual sequences begin or end with a color that cannot be seen on a dark or a light page.
_COLORS = LinearSegmentedColormap.from_list("sizes", ["#2f6fd0", "#8a5fd0", "#c4569f", "#d9752a"])


def sequence(length: int) -> list[str]:
    """Colors in an order, each with a contrast of at least 3 to 1 to a white and to a dark page."""
    return [to_hex(_COLORS(position)) for position in np.linspace(0, 1, length)]


def irreducible_loss(is_entropy: bool) -> str:
    """What E is, in words."""
    return "entropy of the text" if is_entropy else "irreducible loss of the fit"


def fit_picture(analysis: Analysis, path: Path) -> None:
    """Draw the loss over the tokens by size with the fitted curves, and the loss over the size at equal FLOPs."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    curves, isoflops = figure.subplots(1, 2)
    draw_curves(curves, analysis.runs, analysis.fit.law, irreducible_loss(is_entropy=False), "loss")
    draw_isoflops(isoflops, analysis.isoflops, "parameters", "loss")
    for axes, title in zip((curves, isoflops), (CURVES, ISOFLOPS), strict=True):
        axes.set_title(title)
    save_figure(figure, path)


def scaling_picture(study: Study, path: Path) -> None:
    """Draw what `fit_picture` draws, and the forecasts of the most expensive runs."""
    figure = Figure(figsize=(17, 4.2), layout="constrained")
    curves, forecasts, isoflops = figure.subplots(1, 3)
    irreducible = irreducible_loss(is_entropy=study.entropy is not None)
    draw_curves(curves, study.main.runs, study.main.fit.law, irreducible, "bits per byte")
    draw_forecasts(forecasts, _forecasts(study))
    draw_isoflops(isoflops, study.main.isoflops, COUNTS[MAIN_COUNT], "bits per byte")
    for axes, title in zip((curves, forecasts, isoflops), (CURVES, FORECASTS, ISOFLOPS), strict=True):
        axes.set_title(title)
    save_figure(figure, path)


def runs_picture(cells: pd.DataFrame, reason: str, path: Path) -> None:
    """Draw the loss over the tokens by size, for runs that do not determine a law, with the reason."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    draw_runs(axes, cells)
    axes.set_title(f"no law is fitted: {reason}", wrap=True, fontsize="small")
    save_figure(figure, path)


def draw_runs(axes: Axes, cells: pd.DataFrame) -> None:
    """The loss over the tokens by size, for the table that `read_cells` returns."""
    colors = sequence(cells["size"].nunique())
    for color, (size, runs) in zip(colors, cells.groupby("size", sort=False)):
        axes.plot(runs["tokens"], runs["loss"], "o", color=color, markersize=4, label=str(size))
    axes.set(xlabel="training tokens", ylabel="bits per byte", xscale="log", yscale="log")
    _finish(axes)


def draw_curves(axes: Axes, runs: Runs, law: Law, irreducible: str, unit: str) -> None:
    """The loss over the tokens by size, the curves of the law, and a line at E.

    Args:
        axes: The panel to draw in.
        runs: The runs.
        law: The law that was fitted to them.
        irreducible: What E is, in words.
        unit: The unit of the loss.
    """
    sizes = np.unique(runs.parameters)
    tokens = np.geomspace(runs.tokens.min(), runs.tokens.max(), 100)
    labeled = set(sizes[np.linspace(0, len(sizes) - 1, min(len(sizes), _LEGEND_ENTRIES)).round().astype(int)])
    for color, size in zip(sequence(len(sizes)), sizes):
        of_size = runs.parameters == size
        label = f"N = {_short(size)}" if size in labeled else None
        axes.plot(runs.tokens[of_size], runs.loss[of_size], "o", color=color, markersize=4, label=label)
        if label:
            axes.plot(tokens, law.loss(size, tokens), color=color, linewidth=1)
    axes.axhline(law.E, linestyle="--", color="gray", label=irreducible)
    axes.set(xlabel="training tokens", ylabel=unit, xscale="log", yscale="log")
    _finish(axes)


def draw_isoflops(axes: Axes, isoflops: list[IsoFlop], size: str, unit: str) -> None:
    """The loss over the size for runs with about the same FLOPs, with a parabola for each level of FLOPs.

    Args:
        axes: The panel to draw in.
        isoflops: The levels of FLOPs, from low to high.
        size: The parameters that the size counts, in words.
        unit: The unit of the loss.
    """
    drawn = [(isoflop, isoflop.coefficients) for isoflop in isoflops if isoflop.coefficients is not None]
    labeled = set(np.linspace(0, max(len(drawn) - 1, 0), min(len(drawn), _LEGEND_ENTRIES)).round().astype(int))
    for index, (color, (isoflop, parabola)) in enumerate(zip(sequence(len(drawn)), drawn)):
        label = f"{isoflop.flops:.2g} FLOPs" if index in labeled else None
        axes.plot(isoflop.parameters, isoflop.loss, "o", color=color, markersize=4, label=label)
        log_sizes = np.linspace(np.log(isoflop.parameters.min()), np.log(isoflop.parameters.max()), 100)
        axes.plot(np.exp(log_sizes), np.polyval(parabola, log_sizes), color=color, linewidth=1)
        if isoflop.optimum is not None:
            lowest = np.polyval(parabola, np.log(isoflop.optimum))
            axes.plot(isoflop.optimum, lowest, "*", color="C3", markersize=11, zorder=3)
    if any(isoflop.optimum is not None for isoflop, _ in drawn):
        axes.plot([], [], "*", color="C3", markersize=11, label="best size")
    axes.set(xlabel=size, ylabel=unit)
    if drawn:
        axes.set(xscale="log", yscale="log")
        _finish(axes)
    else:
        _say(axes, "no three sizes have about the same FLOPs")


def draw_forecasts(axes: Axes, forecasts: Forecasts) -> None:
    """The predicted losses of the runs that were held out, over the measured ones."""
    axes.set(xlabel="measured bits per byte", ylabel="predicted")
    if not forecasts:
        _say(axes, "too few runs for a forecast")
        return
    for marker, (label, (measured, predicted)) in zip("os", forecasts.items()):
        error = np.mean(np.abs(predicted - measured) / measured)
        axes.plot(measured, predicted, marker, alpha=0.8, label=f"{label},\nmean absolute\nerror {error:.2%}")
    low, high = (min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1]))
    axes.plot([low, high], [low, high], color="gray", linewidth=1, label="no error")
    axes.set_aspect("equal", adjustable="box")
    axes.locator_params(nbins=6)
    axes.grid(alpha=0.3)
    _add_legend(axes)


def _forecasts(study: Study) -> Forecasts:
    forecasts = {}
    for label, analyses in (("E fitted", study.free), ("E given", study.known)):
        forecast = analyses[MAIN_COUNT].held_out if analyses else ""
        if isinstance(forecast, Forecast):
            forecasts[label] = forecast.future.loss, forecast.predicted
    return forecasts


def _finish(axes: Axes) -> None:
    """Numbers at the logarithmic axes, a grid, and a legend."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=12))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    is_wide = high > 2 * low
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 7, 8)) if is_wide else MaxNLocator(6))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    _add_legend(axes)


def _add_legend(axes: Axes) -> None:
    """A legend beside the points, of which there may be many."""
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _say(axes: Axes, text: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)


def _short(number: float) -> str:
    """A number in three digits, such as 1.23M."""
    return EngFormatter(places=None, sep="").format_data(float(f"{number:.3g}"))
