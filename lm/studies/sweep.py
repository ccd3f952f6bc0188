"""A sweep of learning rates: the best ones, and the picture that shows where they lie."""

import math
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lm.pictures import save_figure
from lm.studies.cell import LearningRates
from lm.studies.config import Point, parse_point


def choose_learning_rates(cells: pd.DataFrame, points: list[str]) -> LearningRates:
    """The learning rate of every variant at every one of `points`: the best one at the closest point of the sweep.

    The best rate has the lowest loss. A rate at which the run diverged is not the best one; a variant that diverges at
    every rate gets the lowest one. Points are compared first by the number of weights in their blocks, then by their
    tokens, both as ratios.

    Args:
        cells: the table of a sweep's runs.
    """
    best: dict[str, dict[Point, float]] = {}
    for (variant, size, tokens), runs in cells.groupby(["variant", "size", "tokens"], sort=False):
        finished = runs[(runs["diverged"] == 0) & runs["loss"].notna()]
        ranked = runs.sort_values("learning_rate") if finished.empty else finished.sort_values("loss")
        best.setdefault(str(variant), {})[parse_point(f"{size}-{tokens}")] = float(ranked["learning_rate"].iloc[0])
    return {
        variant: {point: rates[min(rates, key=partial(_distance, parse_point(point)))] for point in points}
        for variant, rates in best.items()
    }


def _distance(one: Point, other: Point) -> tuple[float, float]:
    sizes = [point.num_layers * point.d_model**2 for point in (one, other)]
    return abs(math.log(sizes[0] / sizes[1])), abs(math.log(one.tokens / other.tokens))


def sweep_picture(cells: pd.DataFrame, path: Path) -> None:
    """Draw the table of a sweep's runs; a ring marks each variant's best rate, a cross the rates where it diverged.

    The vertical axis ends where no best rate is near. Losses above it are drawn at its upper end, as triangles.
    """
    panels = list(cells.groupby(["size", "tokens"], sort=False))
    variants = list(cells["variant"].unique())
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns + 2.2, 3.4 * rows), layout="constrained")
    for index, ((size, tokens), runs) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        finite = runs[(runs["diverged"] == 0) & runs["loss"].notna()]
        best = finite.groupby("variant")["loss"].min()
        if best.empty:
            continue
        low, high = best.min(), best.max()
        top = high + max(0.6 * (high - low), 0.5 * high)
        for number, variant in enumerate(variants):
            color = f"C{number % 10}"
            points = finite[finite["variant"] == variant].sort_values("learning_rate")
            rates, losses = points["learning_rate"], points["loss"]
            axes.plot(rates, losses.clip(upper=top), marker=".", color=color)
            above = losses > top
            axes.plot(rates[above], losses[above] * 0 + top, "^", color=color)
            if len(points):
                axes.plot(rates[losses.idxmin()], losses.min(), "o", color=color, fillstyle="none", markersize=9)
            diverged = runs[(runs["variant"] == variant) & (runs["diverged"] != 0)]["learning_rate"]
            axes.plot(diverged, diverged * 0 + top, "x", color=color)
        axes.set(
            xscale="log", xlabel="learning rate", ylabel="loss (bits per byte)", title=f"{size}, {tokens:,} tokens"
        )
        rates = sorted(runs["learning_rate"].unique())
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates], minor=False)
        axes.minorticks_off()
        axes.set_ylim(low - 0.05 * (top - low), top + 0.03 * (top - low))
        axes.grid(alpha=0.3)
    handles = [Line2D([], [], color=f"C{n % 10}", marker=".", label=name) for n, name in enumerate(variants)]
    handles += [
        Line2D([], [], color="gray", marker="o", fillstyle="none", linestyle="", label="best rate"),
        Line2D([], [], color="gray", marker="^", linestyle="", label="above the axis"),
        Line2D([], [], color="gray", marker="x", linestyle="", label="diverged"),
    ]
    figure.legend(handles=handles, loc="outside right upper")
    save_figure(figure, path)
