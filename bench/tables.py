"""Markdown of the figures: what they were measured on, two tables a task, and what has no figure and why."""

import os
import platform
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from systems import SYSTEMS

OURS = "lm"
FIRST = "tiktoken"  # the one that most people use: ours is compared with it too

_TITLES = {
    "train": "Training, MB/s",
    "encode": "Encoding one text, MB/s (second call)",
    "encode_documents": "Encoding documents of 4,096 characters, MB/s (second call)",
    "decode": "Decoding a million tokens, MB/s (second call)",
}


@dataclass(frozen=True)
class Problem:
    """Why a system has no figure, and where, unless it has none anywhere."""

    system: str
    reason: str
    cell: str = ""


def report(
    rows: list[dict[str, Any]], text_bytes: dict[str, int], versions: dict[str, str], problems: list[Problem]
) -> str:
    """Markdown of `rows`, which hold the keys of tokenizer.py's --json."""
    libraries = {name: metadata.version(name) for name in ("numpy", "numba")}
    versions = {"Python": platform.python_version()} | libraries | versions
    lines = [
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()}.",
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.",
        f"Texts: {', '.join(f'{name} {size / 1e6:.1f} MB' for name, size in text_bytes.items())}.",
    ]
    for task, title in _TITLES.items():
        of_task = [row for row in rows if row["task"] == task]
        if of_task:
            lines += ["", f"### {title}", "", *table(of_task, _speed, with_ratios=True)]
            lines += ["", "Peak memory above the process with its input, MB:", "", *table(of_task, _peak)]
    cells = defaultdict(list)
    for problem in problems:
        cells[problem.system, problem.reason].append(problem.cell)
    if cells:
        lines += ["", "Not measured:", ""]
        lines += [f"- {system}: {reason}{_where(where)}" for (system, reason), where in cells.items()]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]], show: Callable[[dict[str, Any]], str], with_ratios: bool = False) -> list[str]:
    """The lines of a table with a column for each system, ours first; the ratios are of our speed to others."""
    names = sorted({row["system"] for row in rows}, key=[OURS, *SYSTEMS].index)
    keys = ["text", "merges", "vocab_size", "threads"] if rows[0]["merges"] else ["text", "vocab_size", "threads"]
    by_cell = defaultdict(dict)
    for row in rows:
        by_cell[tuple(str(row[key]) for key in keys)][row["system"]] = row
    ratios = [f"{OURS} / fastest other", f"{OURS} / {FIRST}"][: 2 if FIRST in names else 1] if with_ratios else []
    lines = [[*keys, *names, *ratios]]
    lines.append(["---"] * len(lines[0]))
    for cell, systems in by_cell.items():
        line = [*cell, *(show(systems[name]) if name in systems else "-" for name in names)]
        speeds = {name: row["mb_per_second"] for name, row in systems.items()}
        ours = speeds.pop(OURS, None)
        for other in [max(speeds.values(), default=None), speeds.get(FIRST)][: len(ratios)]:
            line.append(f"{ours / other:.2f}" if ours and other else "-")
        lines.append(line)
    return [f"| {' | '.join(line)} |" for line in lines]


def _where(cells: list[str]) -> str:
    more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
    return f" ({cells[0]}{more})" if cells[0] else ""


def _speed(row: dict[str, Any]) -> str:
    speeds = [row[key] for key in ("mb_per_second", "second_mb_per_second") if key in row]
    first, *second = [f"{speed:.0f}" if speed >= 100 else f"{speed:.3g}" for speed in speeds]
    return f"{first} ({second[0]})" if second else first


def _peak(row: dict[str, Any]) -> str:
    return f"{row['peak_mb']:.0f}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
