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
            lines += ["", f"### {title}", "", *table(of_task, _speed, with_ratio=True)]
            lines += ["", "Peak memory above the process with its input, MB:", "", *table(of_task, _peak)]
    cells = defaultdict(list)
    for problem in problems:
        cells[problem.system, problem.reason].append(problem.cell)
    if cells:
        lines += ["", "Not measured:", ""]
        lines += [f"- {system}: {reason}{_where(where)}" for (system, reason), where in cells.items()]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]], show: Callable[[dict[str, Any]], str], with_ratio: bool = False) -> list[str]:
    """The lines of a table with a column for each system, ours first, and the ratio of ours to the fastest other."""
    names = sorted({row["system"] for row in rows}, key=[OURS, *SYSTEMS].index)
    keys = ["text", "merges", "vocab_size", "threads"] if rows[0]["merges"] else ["text", "vocab_size", "threads"]
    by_cell = defaultdict(dict)
    for row in rows:
        by_cell[tuple(str(row[key]) for key in keys)][row["system"]] = row
    header = [*keys, *names] + [f"{OURS} / fastest other"] * with_ratio
    lines = [header, ["---"] * len(header)]
    for cell, systems in by_cell.items():
        line = [*cell, *(show(systems[name]) if name in systems else "-" for name in names)]
        if with_ratio:
            others = [row["mb_per_second"] for name, row in systems.items() if name != OURS]
            known = OURS in systems and others
            line.append(f"{systems[OURS]['mb_per_second'] / max(others):.2f}" if known else "-")
        lines.append(line)
    return [f"| {' | '.join(line)} |" for line in lines]


def _where(cells: list[str]) -> str:
    more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
    return f" ({cells[0]}{more})" if cells[0] else ""


def _speed(row: dict[str, Any]) -> str:
    second = row.get("second_mb_per_second")
    return f"{row['mb_per_second']:.3g}" + (f" ({second:.3g})" if second else "")


def _peak(row: dict[str, Any]) -> str:
    return f"{row['peak_mb']:.0f}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
