"""Loss curves as PNG files, drawn without a display."""

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lm.atomic import atomic_write


def training_picture(history: list[dict[str, Any]], floor_bits_per_byte: float | None, path: Path) -> None:
    """Draw the losses in nats per token on the left and the val loss in bits per byte on the right.

    `floor_bits_per_byte` is the entropy of the corpus, where it is known.
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, bits = figure.subplots(1, 2)
    for name, label in (("train_loss", "train"), ("val_loss", "val")):
        losses.plot(*_points(history, name), marker=".", label=label)
    losses.set(xlabel="step", ylabel="loss (nats per token)")
    bits.plot(*_points(history, "val_bits_per_byte"), marker=".", color="C1", label="val")
    if floor_bits_per_byte is not None:
        bits.axhline(floor_bits_per_byte, linestyle="--", color="gray", label="entropy of the corpus")
    bits.set(xlabel="step", ylabel="bits per byte", ylim=(0, None))
    for axes in (losses, bits):
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def comparison_picture(histories: dict[str, list[list[dict[str, Any]]]], path: Path) -> None:
    """Draw the val loss of every run: one color per variant, one line per seed.

    The vertical axis fits the first variant, the baseline; the line of a run that diverges leaves it at the top.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for index, (variant, runs) in enumerate(histories.items()):
        for seed, history in enumerate(runs):
            label = variant if seed == 0 else None
            axes.plot(*_points(history, "val_loss"), color=f"C{index}", marker=".", alpha=0.8, label=label)
    baseline = [loss for history in next(iter(histories.values())) for loss in _points(history, "val_loss")[1]]
    if baseline:
        margin = 0.15 * (max(baseline) - min(baseline))
        axes.set_ylim(min(baseline) - margin, max(baseline) + 2 * margin)
    axes.set(xlabel="step", ylabel="val loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def _points(history: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """The steps and the finite values of a column."""
    rows = [row for row in history if row[name] is not None and math.isfinite(row[name])]
    return [row["step"] for row in rows], [row[name] for row in rows]


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as file:
        # Without matplotlib's version in the metadata, the same run gives the same file.
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
