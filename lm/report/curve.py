"""The loss curve of a training run: read from its CSV file, and drawn."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from lm.errors import UserError
from lm.pictures import save_figure, svg
from lm.schema import open_file
from lm.training.history import History

Curves = Mapping[str, History]  # by the name of the run, which is empty if there is only one

_LOSSES_BY_KIND = {
    "later_name_nats": "later mentions of names",
    "later_other_nats": "later mentions of other things",
    "wording_nats": "wording",
}
_LOSSES_BY_PAIR = {"repeated_pair_nats": "repeated pairs", "new_pair_nats": "other tokens"}

_MAX_BYTES = 1 << 25  # of the file, which a server reads for every response
_MAX_VALUE = 1e100  # so that no difference or ratio of values overflows
_TEXT = "continuation"
_MAX_POINTS = 400  # of a line, about one for every second pixel
_MAX_MARKERS = 60


def read_curve(path: Path) -> History:
    """Read the file that `lm.training.metrics.write_curve` writes; a value that is empty or not finite is None.

    Raises:
        UserError: the file cannot be read, is too large, or is not a table of losses.
    """
    advice = "a training run writes it: dvc repro train"
    with open_file(path, advice) as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise UserError(f"{path}: expected at most {_MAX_BYTES:,} bytes; {advice}")
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True))
        history = [{name: _value(name, text) for name, text in row.items()} for row in rows]
        steps = [row["step"] for row in history if {"train_loss", "val_loss"} <= row.keys()]
        if len(steps) < len(history):
            raise KeyError("val_loss")
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not a table of losses by step; {advice}") from error
    if None in steps:
        raise UserError(f"{path}: not a table of losses by step; {advice}")
    if not any(row[name] is not None for row in history for name in ("train_loss", "val_loss")):
        raise UserError(f"{path}: contains no losses yet; {advice}")
    return history


def _value(name: str, text: str) -> Any:
    if name == _TEXT:
        return json.loads(f'"{text}"')  # as lm.training.metrics.evaluation_row writes it
    number = float(text) if text else math.nan
    if not abs(number) < _MAX_VALUE:
        return None
    return int(number) if name == "step" else number


def training_picture(history: History, floor_bits_per_byte: float | None, path: Path) -> None:
    """Draw the losses over windows, the bits per byte of windows and of whole documents, and the loss by kind of token.

    `floor_bits_per_byte` is the entropy of the corpus, where it is known.
    """
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    losses, bits, kinds = figure.subplots(1, 3)
    draw_losses(losses, {"": history})
    draw_bits_per_byte(bits, {"": history}, floor_bits_per_byte)
    draw_kinds(kinds, history)
    save_figure(figure, path)


def draw_losses(axes: Axes, curves: Curves) -> None:
    """The loss over windows of the train and the val split, in nats per token."""
    _draw(axes, curves, {"train_loss": "train", "val_loss": "val, windows"})
    axes.set(xlabel="step", ylabel="nats per token")


def draw_bits_per_byte(axes: Axes, curves: Curves, floor: float | None) -> None:
    """The loss on the val split over the entropy of the corpus, where that is known."""
    _draw(axes, curves, {"val_bits_per_byte": "val, windows", "document_bits_per_byte": "val, whole documents"}, 1)
    if floor is not None:
        axes.axhline(floor, linestyle="--", color="gray", label="entropy of the corpus")
        axes.legend()
    axes.set(xlabel="step", ylabel="bits per byte")
    _logarithmic(axes)


def draw_kinds(axes: Axes, history: History) -> None:
    """The loss by kind of token where the kinds are known, and otherwise that of pairs that the document repeats."""
    is_known = any(_points(history, name)[0] for name in _LOSSES_BY_KIND)
    _draw(axes, {"": history}, _LOSSES_BY_KIND if is_known else _LOSSES_BY_PAIR)
    axes.set(xlabel="step", ylabel="whole documents (nats per token)")
    _logarithmic(axes)


def draw_learning_rate(axes: Axes, history: History) -> None:
    """The learning rate."""
    _draw(axes, {"": history}, {"learning_rate": "learning rate"})
    axes.set(xlabel="step", ylabel="learning rate")


def draw_gradient_norm(axes: Axes, history: History) -> None:
    """The norm of the gradient before clipping."""
    _draw(axes, {"": history}, {"grad_norm": "gradient norm"})
    axes.set(xlabel="step", ylabel="gradient norm, before clipping")


def loss_curve(path: Path) -> str:
    """The losses in a CSV file as SVG for a page; the errors are those of `read_curve`."""
    history = read_curve(path)
    last = history[-1]
    losses = [f"{name} {last[f'{name}_loss']:.4g}" for name in ("train", "val") if last[f"{name}_loss"] is not None]
    figure = Figure(figsize=(7.6, 2.6), layout="constrained")
    draw_losses(figure.subplots(), {"": history})
    return svg(figure, "losses", f"Loss in nats per token at step {last['step']:,}: {', '.join(losses)}")


def plot(draw: Callable[[Axes], None]) -> Figure:
    """A figure of one panel."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    draw(figure.subplots())
    return figure


def _draw(axes: Axes, curves: Curves, labels: Mapping[str, str], first_color: int = 0) -> None:
    """A line per column and run. With one run, each column has a color; with several, each run has one."""
    for run_index, (run, history) in enumerate(curves.items()):
        for index, (name, label) in enumerate(labels.items()):
            is_single = len(curves) == 1
            steps, values = _points(history, name)
            axes.plot(
                steps,
                values,
                color=f"C{first_color + index if is_single else run_index}",
                linestyle="-" if is_single or not index else "--",
                marker="." if len(steps) <= _MAX_MARKERS else "",
                label=f"{run}: {label}" if run else label,
            )
    axes.grid(alpha=0.3)
    axes.legend()


def _points(history: History, name: str) -> tuple[list[int], list[float]]:
    """The steps and the finite values of a column, or evenly spaced ones of many."""
    rows = [row for row in history if (value := row.get(name)) is not None and math.isfinite(value)]
    if len(rows) > _MAX_POINTS:
        rows = [rows[index * (len(rows) - 1) // (_MAX_POINTS - 1)] for index in range(_MAX_POINTS)]
    return [row["step"] for row in rows], [row[name] for row in rows]


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis, because the first evaluations are many times as high as the last ones."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
