"""The losses of a training as an SVG picture that takes its colours from the page around it."""

import csv
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 760, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 24, 12, 40  # margins, with the numbers and the legend in them
NUM_TICKS = 5

Points = list[tuple[float, float]]  # step and loss


def loss_curve(path: Path) -> str:
    """`train_loss` and `val_loss` of the training's CSV file over `step`, or a line that says why there is none.

    What is empty or not finite leaves a point out.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        curves = {name: _points(rows, f"{name}_loss") for name in ("train", "val")}
    except FileNotFoundError:
        return _note(f"{path} is not there: no loss curve")
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return _note(f"{path} cannot be read as a table of losses")
    if not any(curves.values()):
        return _note(f"{path} holds no losses yet")
    return _picture(curves)


def ticks(low: float, high: float, most: int) -> list[float]:
    """About `most` round numbers, never more than one above it, 1, 2 or 5 times a power of ten apart.

    Example: ticks(0.3, 7.6, 5) is [2.0, 4.0, 6.0].
    """
    if low == high:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    distance = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.ceil(low / distance), math.floor(high / distance)
    return [round(number * distance, 12) for number in range(first, last + 1)]


def _points(rows: Sequence[dict[str, str]], name: str) -> Points:
    points = [(float(row["step"]), float(row[name])) for row in rows if row[name]]
    return [point for point in points if all(map(math.isfinite, point))]


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _picture(curves: dict[str, Points]) -> str:
    steps, losses = zip(*(point for points in curves.values() for point in points))
    x = _Scale(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    y = _Scale(min(losses), max(losses), HEIGHT - BOTTOM, TOP)
    parts = [f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_summary(curves)}">']
    for loss in ticks(y.low, y.high, NUM_TICKS):
        at = y(loss)
        parts.append(f'<path class="grid" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at}" text-anchor="end" dominant-baseline="middle">{loss:g}</text>')
    for step in ticks(x.low, x.high, NUM_TICKS + 1):
        parts.append(f'<text x="{x(step)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{step:,.10g}</text>')
    for number, (name, points) in enumerate(curves.items()):
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
        parts.append(f'<text x="{left + 24}" y="{HEIGHT - 4}">{name}, at last {curves[name][-1][1]:.4g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">nats a token, by step</text></svg>')
    return "".join(parts)


def _summary(curves: dict[str, Points]) -> str:
    """The picture in words."""
    lasts = [f"{name} {points[-1][1]:.4g} at step {points[-1][0]:,.10g}" for name, points in curves.items() if points]
    return f"Loss in nats a token: {', '.join(lasts)}"


class _Scale:
    """From numbers between `low` and `high` to pixels between `start` and `stop`."""

    def __init__(self, low: float, high: float, start: int, stop: int) -> None:
        self.low, self.high = low, high
        self._start, self._stop = start, stop

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self._start + share * (self._stop - self._start), 1)
