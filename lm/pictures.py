"""Loss curves as PNG files, drawn without a display."""

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from lm.atomic import atomic_write

_LOSSES_BY_KIND = {
    "later_name_nats": "later mentions of names",
    "later_other_nats": "later mentions of other things",
    "wording_nats": "wording",
}
_LOSSES_BY_PAIR = {"repeated_pair_nats": "repeated pairs", "new_pair_nats": "other tokens"}


def training_picture(history: list[dict[str, Any]], floor_bits_per_byte: float | None, path: Path) -> None:
    """Draw the losses over windows, the bits per byte of windows and of whole documents, and the loss by kind of token.

    `floor_bits_per_byte` is the entropy of the corpus, where it is known.
    """
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    losses, bits, kinds = figure.subplots(1, 3)
    for name, label in (("train_loss", "train"), ("val_loss", "val, windows")):
        losses.plot(*_points(history, name), marker=".", label=label)
    losses.set(xlabel="step", ylabel="loss (nats per token)")
    for name, label, color in (
        ("val_bits_per_byte", "val, windows", "C1"),
        ("document_bits_per_byte", "val, whole documents", "C2"),
    ):
        bits.plot(*_points(history, name), marker=".", color=color, label=label)
    if floor_bits_per_byte is not None:
        bits.axhline(floor_bits_per_byte, linestyle="--", color="gray", label="entropy of the corpus")
    # Logarithmic, because the first evaluations are many times as high as the last ones.
    bits.set(xlabel="step", ylabel="bits per byte", yscale="log")
    is_known = any(_points(history, name)[0] for name in _LOSSES_BY_KIND)
    for name, label in (_LOSSES_BY_KIND if is_known else _LOSSES_BY_PAIR).items():
        kinds.plot(*_points(history, name), marker=".", label=label)
    kinds.set(xlabel="step", ylabel="whole documents (nats per token)", yscale="log")
    for axes in (bits, kinds):
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    for axes in (losses, bits, kinds):
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path)


def _points(history: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """The steps and the finite values of a column."""
    rows = [row for row in history if row[name] is not None and math.isfinite(row[name])]
    return [row["step"] for row in rows], [row[name] for row in rows]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, completely or not at all."""
    with atomic_write(path) as file:
        # Without matplotlib's version in the metadata, the same run gives the same file.
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
