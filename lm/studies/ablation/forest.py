"""The results of an ablation as a picture: a forest plot, and the losses over the compute."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from lm.pictures import save_figure
from lm.studies.ablation.table import Row, longest_runs, mask_diverged, multiplier_text

# Color and marker of each verdict. Matplotlib's own colors are those that a page replaces by its own; the markers tell
# verdicts and variants apart without colors.
_STYLES = {"better": ("C0", "v"), "worse": ("C1", "^"), "no difference shown": ("C7", "o"), "one seed": ("C6", "D")}
_GAP = 5.0  # a difference this many times as large as the next smaller one is cut off
_LINE_MARKERS = "osDv^<>PX*"


def forest_picture(frame: pd.DataFrame, cells: pd.DataFrame, path: Path) -> None:
    """Draw the difference of each variant at the largest number of tokens, and the loss over the FLOPs.

    Each size has a row of panels. On the left, a point and the 95% interval of the difference per variant, with the
    compute multiplier beside it; a difference that is several times as large as all others is cut off and written as a
    number. On the right, if there are runs with several numbers of tokens, the mean loss of each variant and the points
    of its seeds, minus the floor where it is known.

    Args:
        frame: The result of `lm.studies.ablation.table.table`.
        cells: The runs it was made of.
        path: The PNG file to write.
    """
    baseline = str(frame["variant"].iloc[0])
    sizes = list(frame["size"].unique())
    has_curves = cells["tokens"].nunique() > 1
    height = panel_height(frame["variant"].nunique())
    figure = Figure(figsize=(14.5 if has_curves else 8.5, height * len(sizes)), layout="constrained")
    grid = figure.subplots(len(sizes), 2 if has_curves else 1, squeeze=False)
    for panels, size in zip(grid, sizes):
        rows = longest_runs(frame[frame["size"] == size], baseline)
        draw_forest(panels[0], rows, baseline)
        panels[0].set_title(f"size {size}, {rows['tokens'].iloc[0]:,} tokens")
        if has_curves:
            draw_losses(panels[1], cells[cells["size"] == size], baseline)
            panels[1].set_title(f"size {size}, all numbers of tokens")
    add_verdicts(figure, frame)
    save_figure(figure, path)


def panel_height(num_variants: int) -> float:
    """The height in inches of a forest plot."""
    return max(3.2, 1.6 + 0.3 * num_variants)


def add_verdicts(figure: Figure, frame: pd.DataFrame) -> None:
    """Add a legend of the verdicts that occur in a table to a figure of forest plots."""
    verdicts = [verdict for verdict in _STYLES if (frame["verdict"] == verdict).any()]
    handles = [Line2D([], [], color=_STYLES[name][0], marker=_STYLES[name][1], label=name) for name in verdicts]
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), frameon=False)


def axis_limit(extents: list[float]) -> float:
    """The distance from 0 to which an axis must reach so that one huge difference does not squash the others.

    Args:
        extents: The largest distance from 0 of each variant's interval, N >= 1 numbers.

    Example: 0.01, 0.02 and 0.9 give 0.02; 0.01, 0.02 and 0.09 give 0.09.
    """
    ordered = sorted(extents)
    for index in range((len(ordered) - 1) // 2, len(ordered) - 1):  # at least half of the variants are inside
        if 0 < _GAP * ordered[index] < ordered[index + 1]:
            return ordered[index]
    return ordered[-1]


def draw_forest(axes: Axes, rows: pd.DataFrame, baseline: str) -> None:
    """A point and the 95% interval of the difference per variant, with its verdict and its compute multiplier.

    Args:
        axes: The panel to draw in.
        rows: The rows of one size and number of tokens in a table.
        baseline: The variant that the others are compared with.
    """
    records = [row for row in rows.to_dict("records") if row["variant"] != baseline]
    extents = [extent for row in records if not math.isnan(extent := _extent(row))]
    limit = 1.15 * (axis_limit(extents) if extents else 0.0) or 1.0
    axes.axvline(0, color="black", linewidth=1)
    for position, row in enumerate(records):
        _draw_difference(axes, position, row, limit)
    axes.set_yticks(range(len(records)), [row["variant"] for row in records])
    axes.set(
        xlabel=f"better ← → worse\nloss minus that of {baseline} (bits per byte)",
        xlim=(-limit, limit),
        ylim=(len(records) - 0.4, -0.6),
    )
    axes.grid(axis="x", alpha=0.3)
    if any(texts := [multiplier_text(row) for row in records]):
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(len(records)), texts)
        right.tick_params(length=0)
        right.set_ylabel("compute multiplier\n(* extrapolated)")


def _extent(row: Row) -> float:
    """The largest distance from 0 of a difference and its interval, NaN if there is no difference."""
    return float(np.fmax.reduce(np.abs([row["difference"], row["difference_low"], row["difference_high"]])))


def _draw_difference(axes: Axes, position: int, row: Row, limit: float) -> None:
    """A point and an interval, or an arrow and a number beyond the limit, or the reason for having no difference."""
    difference, low, high = row["difference"], row["difference_low"], row["difference_high"]
    if math.isnan(difference):
        runs = f", {row['diverged']} of {row['runs']} runs" if row["verdict"] == "diverged" else ""
        axes.text(0.02 * limit, position, f"{row['verdict']}{runs}", va="center", style="italic")
        return
    color, marker = _STYLES[row["verdict"]]
    if abs(difference) <= limit:
        axes.plot([low, high], [position, position], color=color, linewidth=2, solid_capstyle="butt")
        axes.plot(difference, position, marker=marker, color=color, markersize=8)
        return
    side = math.copysign(1, difference)
    axes.plot(0.97 * side * limit, position, marker=">" if side > 0 else "<", color=color, markersize=9)
    axes.text(
        0.93 * side * limit,
        position,
        f"{difference:+.3g}",
        color=color,
        va="center",
        ha="right" if side > 0 else "left",
    )


def draw_losses(axes: Axes, cells: pd.DataFrame, baseline: str) -> None:
    """The loss minus the floor over the FLOPs; what is far above the baseline leaves the panel at the top.

    Args:
        axes: The panel to draw in.
        cells: The runs of one size, with any number of tokens.
        baseline: The variant whose line is in front.
    """
    cells = mask_diverged(cells)
    cells = cells.assign(excess=cells["loss"] - cells["floor"].fillna(0))
    positive = cells[cells["excess"] > 0]
    reference = positive[positive["variant"] == baseline]["excess"]
    top = min(positive["excess"].max(), 2 * (reference if len(reference) else positive["excess"]).max())
    for index, variant in enumerate(cells["variant"].unique()):
        runs = cells[cells["variant"] == variant]
        # A mean over the runs that happened to survive would flatter the variant.
        means = runs.groupby("tokens")[["flops", "excess"]].agg(lambda values: values.mean(skipna=False))
        remark = " (diverged)" if means["excess"].isna().any() else " (above)" if means["excess"].min() > top else ""
        is_baseline = variant == baseline
        color = "black" if is_baseline else f"C{(index - 1) % 10}"
        layer = 3 if is_baseline else 2
        axes.plot(
            means["flops"],
            means["excess"],
            color=color,
            marker=_LINE_MARKERS[index % len(_LINE_MARKERS)],
            markersize=5,
            linewidth=2 if is_baseline else 1.2,
            label=f"{variant}{remark}",
            zorder=layer,
        )
        axes.plot(runs["flops"], runs["excess"], color=color, marker=".", markersize=3, linestyle="none", zorder=layer)
    axes.set(
        xlabel="FLOPs of the training",
        ylabel="loss (bits per byte)" if cells["floor"].isna().all() else "loss minus entropy (bits per byte)",
    )
    if len(positive):  # a logarithmic axis needs something to show
        axes.set(xscale="log", yscale="log", ylim=(positive["excess"].min() / 1.1, top * 1.1))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter("{x:.0e}")
        axes.yaxis.set_major_formatter("{x:g}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
