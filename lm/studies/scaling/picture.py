"""Pictures of a scaling law: its fit, its forecasts, and the loss at equal FLOPs."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from lm.pictures import save_figure
from lm.studies.scaling.analysis import Analysis
from lm.studies.scaling.forecasts import Forecast
from lm.studies.scaling.study import COUNTS, MAIN_COUNT, Study

_LEGEND_ENTRIES = 8
_COLORS = colormaps["viridis"]


def fit_picture(analysis: Analysis, path: Path) -> None:
    """Draw the loss over the tokens by size with the fitted curves, and the loss over the size at equal FLOPs."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    curves, isoflops = figure.subplots(1, 2)
    _draw_curves(curves, analysis, "irreducible loss of the fit", "loss")
    _draw_isoflops(isoflops, analysis, "parameters", "loss")
    save_figure(figure, path)


def scaling_picture(study: Study, path: Path) -> None:
    """Draw what `fit_picture` draws, and the forecasts of the most expensive runs."""
    figure = Figure(figsize=(17, 4.2), layout="constrained")
    curves, forecasts, isoflops = figure.subplots(1, 3)
    irreducible = "irreducible loss of the fit" if study.entropy is None else "entropy of the text"
    _draw_curves(curves, study.main, irreducible, "bits per byte")
    _draw_forecasts(forecasts, study)
    _draw_isoflops(isoflops, study.main, COUNTS[MAIN_COUNT], "bits per byte")
    save_figure(figure, path)


def runs_picture(cells: pd.DataFrame, reason: str, path: Path) -> None:
    """Draw the loss over the tokens by size, for runs that do not determine a law, with the reason."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    for size, runs in cells.groupby("size", sort=False):
        axes.plot(runs["tokens"], runs["loss"], "o", markersize=4, label=str(size))
    axes.set(xlabel="training tokens", ylabel="bits per byte", xscale="log", yscale="log")
    axes.set_title(f"no law is fitted: {reason}", wrap=True, fontsize="small")
    _finish(axes)
    save_figure(figure, path)


def _draw_curves(axes: Axes, analysis: Analysis, irreducible: str, unit: str) -> None:
    runs, law = analysis.runs, analysis.fit.law
    sizes = np.unique(runs.parameters)
    tokens = np.geomspace(runs.tokens.min(), runs.tokens.max(), 100)
    labeled = set(sizes[np.linspace(0, len(sizes) - 1, min(len(sizes), _LEGEND_ENTRIES)).round().astype(int)])
    for position, size in zip(np.linspace(0, 0.9, len(sizes)), sizes):
        of_size = runs.parameters == size
        label = f"N = {_short(size)}" if size in labeled else None
        axes.plot(runs.tokens[of_size], runs.loss[of_size], "o", color=_COLORS(position), markersize=4, label=label)
        if label:
            axes.plot(tokens, law.loss(size, tokens), color=_COLORS(position), linewidth=1)
    axes.axhline(law.E, linestyle="--", color="gray", label=irreducible)
    axes.set(xlabel="training tokens", ylabel=unit, title="runs and fitted law", xscale="log", yscale="log")
    _finish(axes)


def _draw_isoflops(axes: Axes, analysis: Analysis, size: str, unit: str) -> None:
    drawn = [(isoflop, isoflop.coefficients) for isoflop in analysis.isoflops if isoflop.coefficients is not None]
    labeled = set(np.linspace(0, max(len(drawn) - 1, 0), min(len(drawn), _LEGEND_ENTRIES)).round().astype(int))
    for index, (position, (isoflop, parabola)) in enumerate(zip(np.linspace(0, 0.9, len(drawn)), drawn)):
        color = _COLORS(position)
        label = f"{isoflop.flops:.2g} FLOPs" if index in labeled else None
        axes.plot(isoflop.parameters, isoflop.loss, "o", color=color, markersize=4, label=label)
        log_sizes = np.linspace(np.log(isoflop.parameters.min()), np.log(isoflop.parameters.max()), 100)
        axes.plot(np.exp(log_sizes), np.polyval(parabola, log_sizes), color=color, linewidth=1)
        if isoflop.optimum is not None:
            lowest = np.polyval(parabola, np.log(isoflop.optimum))
            axes.plot(isoflop.optimum, lowest, "*", color="C3", markersize=11, zorder=3)
    if any(isoflop.optimum is not None for isoflop, _ in drawn):
        axes.plot([], [], "*", color="C3", markersize=11, label="best size")
    axes.set(xlabel=size, ylabel=unit, title="runs with about the same FLOPs")
    if drawn:
        axes.set(xscale="log", yscale="log")
        _finish(axes)
    else:
        _say(axes, "no three sizes have about the same FLOPs")


def _draw_forecasts(axes: Axes, study: Study) -> None:
    drawn = False
    for label, marker, analyses in (("E fitted", "o", study.free), ("E given", "s", study.known)):
        forecast = analyses[MAIN_COUNT].held_out if analyses else ""
        if isinstance(forecast, Forecast):
            error = f"mean absolute error {100 * forecast.mean_absolute_relative_error:.2f}%"
            axes.plot(forecast.future.loss, forecast.predicted, marker, alpha=0.8, label=f"{label}, {error}")
            drawn = True
    axes.set(xlabel="measured bits per byte", ylabel="predicted", title="most expensive runs, from the others")
    if not drawn:
        _say(axes, "too few runs for a forecast")
        return
    low, high = (min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1]))
    axes.plot([low, high], [low, high], color="gray", linewidth=1, label="measured = predicted")
    axes.set_aspect("equal", adjustable="box")
    axes.locator_params(nbins=6)
    axes.grid(alpha=0.3)
    axes.legend()


def _finish(axes: Axes) -> None:
    """Numbers at the logarithmic axes, a grid, and a legend beside the points, of which there may be many."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=12))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    is_wide = high > 2 * low
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 7, 8)) if is_wide else MaxNLocator(6))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _say(axes: Axes, text: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)


def _short(number: float) -> str:
    """A number in three digits, such as 1.23M."""
    return EngFormatter(places=None, sep="").format_data(float(f"{number:.3g}"))
