"""Plot the losses of a training run as SVG, with colors from the style sheet of the page around it."""

import csv
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from lm.errors import UserError
from lm.schema import open_file

WIDTH, HEIGHT = 760, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 24, 12, 40  # margins, which hold the tick labels and the legend
NUM_TICKS = 5
MAX_POINTS = 400  # of a curve, about one for every second pixel

_MAX_BYTES = 1 << 23  # of the file, which is read for every response: enough for more than ten thousand evaluations
_MAX_VALUE = 1e100  # so that no difference or ratio of values overflows

Points = list[tuple[float, float]]  # step and loss


def loss_curve(path: Path) -> str:
    """Plot `train_loss` and `val_loss` over `step` from a CSV file, and return SVG.

    Values that are empty, not finite or 1e100 and more are skipped, and a curve of more than `MAX_POINTS` points is
    drawn with as many of them, evenly spaced. If there is nothing to plot, the result is a paragraph that says why.
    """
    try:
        return _svg(_read(path))
    except UserError as error:
        return f'<p class="note">no loss curve: {escape(str(error))}</p>'


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count`, and at most `count` + 1, round numbers between `low` and `high`.

    Their spacing is 1, 2 or 5 times a power of ten.

    Example:
        >>> ticks(0.3, 7.6, 5)
        [2.0, 4.0, 6.0]
    """
    min_spacing = (high - low) / count
    if min_spacing < 1e-12:  # the last digit that a tick is rounded to
        return [low]
    power = 10.0 ** math.floor(math.log10(min_spacing))
    spacing = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= min_spacing)
    first, last = math.ceil(low / spacing), math.floor(high / spacing)
    return [round(number * spacing, 12) for number in range(first, last + 1)]


def _read(path: Path) -> dict[str, Points]:
    """Read the points of each curve.

    Raises:
        UserError: the file cannot be read, is too large, or contains no losses.
    """
    with open_file(path, "a training run writes it") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise UserError(f"{path} is too large, more than {_MAX_BYTES:,} bytes")
    try:
        header, *rows = csv.reader(io.StringIO(data.decode(), newline=""))
        step = header.index("step")
        curves = {name: _points(rows, step, header.index(f"{name}_loss")) for name in ("train", "val")}
    except (ValueError, IndexError, csv.Error) as error:
        raise UserError(f"{path} is not a readable table of losses") from error
    if not any(curves.values()):
        raise UserError(f"{path} contains no losses yet")
    return curves


def _points(rows: Sequence[list[str]], step_column: int, loss_column: int) -> Points:
    rows = [row for row in rows if len(row) > loss_column and row[loss_column]]
    if len(rows) > MAX_POINTS:
        rows = [rows[number * (len(rows) - 1) // (MAX_POINTS - 1)] for number in range(MAX_POINTS)]
    points = [(float(row[step_column]), float(row[loss_column])) for row in rows]
    return [(step, loss) for step, loss in points if abs(step) < _MAX_VALUE and abs(loss) < _MAX_VALUE]  # no NaN


def _svg(curves: dict[str, Points]) -> str:
    steps, losses = zip(*(point for points in curves.values() for point in points))
    x = _Scale(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    y = _Scale(min(losses), max(losses), HEIGHT - BOTTOM, TOP)
    parts = [f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_summary(curves)}">']
    for loss in ticks(y.low, y.high, NUM_TICKS):
        parts.append(f'<path class="grid" d="M{LEFT} {y(loss)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(loss)}" text-anchor="end" dominant-baseline="middle">{loss:g}</text>')
    parts += [
        f'<text x="{x(step)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{step:,.10g}</text>'
        for step in ticks(x.low, x.high, NUM_TICKS + 1)
    ]
    for name, points in curves.items():
        path = " ".join(f"{x(step)},{y(loss)}" for step, loss in points)
        parts.append(f'<polyline class="{name}" points="{path}"/>')
        parts += [
            f'<circle class="{name}" cx="{x(step)}" cy="{y(loss)}" r="3">'
            f"<title>{name} loss {loss:.4g} at step {step:,.10g}</title></circle>"
            for step, loss in points
        ]
    legend = [name for name, points in curves.items() if points]
    for number, name in enumerate(legend):
        left = LEFT + 190 * number
        parts.append(f'<path class="{name}" d="M{left} {HEIGHT - 8}h18"/>')
        parts.append(f'<text x="{left + 24}" y="{HEIGHT - 4}">{name}, last {curves[name][-1][1]:.4g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">nats per token, by step</text></svg>')
    return "".join(parts)


def _summary(curves: dict[str, Points]) -> str:
    """Describe the plot in words, for screen readers."""
    last = [f"{name} {points[-1][1]:.4g} at step {points[-1][0]:,.10g}" for name, points in curves.items() if points]
    return f"Loss in nats per token: {', '.join(last)}"


class _Scale:
    """A linear map from the range `low` to `high` of values to the range `start` to `stop` of pixels."""

    def __init__(self, low: float, high: float, start: int, stop: int) -> None:
        self.low, self.high = low, high
        self._start, self._stop = start, stop

    def __call__(self, value: float) -> float:
        fraction = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self._start + fraction * (self._stop - self._start), 1)
