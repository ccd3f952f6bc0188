"""Markdown of the tokenizers' figures: two tables a task, and what has no figure and why."""

import platform
from importlib import metadata
from typing import Any

from comparison import OURS, Problem, machine, not_measured, table
from systems import SYSTEMS

FIRST = "tiktoken"  # the one that most people use: ours is compared with it too

_ORDER = [OURS, *(name for name in SYSTEMS if name != OURS)]
_TITLES = {
    "train": "Training, MB/s",
    "encode": "Encoding one text, MB/s (second call)",
    "encode_documents": "Encoding documents of 4,096 characters, MB/s (second call)",
    "decode": "Decoding a million tokens, MB/s (second call)",
}


def report(
    rows: list[dict[str, Any]], text_bytes: dict[str, int], versions: dict[str, str], problems: list[Problem]
) -> str:
    """Markdown of `rows`, which hold the keys of tokenizer.py's --json."""
    libraries = {name: metadata.version(name) for name in ("numpy", "numba")}
    versions = {"Python": platform.python_version()} | libraries | versions
    lines = [
        f"{machine()}.",
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.",
        f"Texts: {', '.join(f'{name} {size / 1e6:.1f} MB' for name, size in text_bytes.items())}.",
    ]
    for task, title in _TITLES.items():
        of_task = [row for row in rows if row["task"] == task]
        if of_task:
            keys = [
                key for key in ("text", "merges", "vocab_size", "threads") if key != "merges" or of_task[0]["merges"]
            ]
            lines += ["", f"### {title}", "", *table(of_task, keys, _ORDER, _speed, "mb_per_second", FIRST)]
            lines += ["", "Peak memory above the process with its input, MB:", "", *table(of_task, keys, _ORDER, _peak)]
    return "\n".join(lines + not_measured(problems))


def _speed(row: dict[str, Any]) -> str:
    speeds = [row[key] for key in ("mb_per_second", "second_mb_per_second") if key in row]
    first, *second = [f"{speed:.0f}" if speed >= 100 else f"{speed:.3g}" for speed in speeds]
    return f"{first} ({second[0]})" if second else first


def _peak(row: dict[str, Any]) -> str:
    return f"{row['peak_mb']:.0f}"
