"""Markdown that the benchmarks share: the machine, a table of systems side by side, what was not measured."""

import os
import platform
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = "lm"

Row = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """Why a system has no figure, and where, unless it has none anywhere."""

    system: str
    reason: str
    cell: str = ""


def machine() -> str:
    return f"{_processor()}, {os.cpu_count()} cores, {platform.system()}"


def table(
    rows: list[Row],
    keys: Sequence[str],
    order: Sequence[str],
    show: Callable[[Row], str],
    speed: str | None = None,
    first: str | None = None,
) -> list[str]:
    """The lines of a table with a line for each value of `keys` and a column for each system, in the given order.

    With the key of a `speed` two columns more hold the ratios of our speed to that of the fastest other system and, if
    it is among the rows, to that of the system `first`.
    """
    names = [name for name in order if name in {row["system"] for row in rows}]
    by_cell: dict[tuple[str, ...], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        by_cell[tuple(str(row[key]) for key in keys)][row["system"]] = row
    ratios = [f"{OURS} / fastest other"] * (speed is not None) + [f"{OURS} / {first}"] * (first in names)
    lines = [[*keys, *names, *ratios]]
    lines.append(["---"] * len(lines[0]))
    for cell, systems in by_cell.items():
        line = [*cell, *(show(systems[name]) if name in systems else "-" for name in names)]
        speeds = {name: row[speed] for name, row in systems.items()} if speed else {}
        ours = speeds.pop(OURS, None)
        for other in [max(speeds.values(), default=None), speeds.get(first)][: len(ratios)]:
            line.append(f"{ours / other:.2f}" if ours and other else "-")
        lines.append(line)
    return [f"| {' | '.join(line)} |" for line in lines]


def not_measured(problems: list[Problem]) -> list[str]:
    """A line for each system and reason, with the first of the cells."""
    cells = defaultdict(list)
    for problem in problems:
        cells[problem.system, problem.reason].append(problem.cell)
    lines = ["", "Not measured:", ""] if cells else []
    return lines + [f"- {system}: {reason}{_where(where)}" for (system, reason), where in cells.items()]


def _where(cells: list[str]) -> str:
    more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
    return f" ({cells[0]}{more})" if cells[0] else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
