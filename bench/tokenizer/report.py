"""The Markdown of the comparison: two tables per task, and what was not measured."""

from typing import Any

from bench.common.tables import OURS, Problem, machine, not_measured, table, versions
from bench.tokenizer.systems import SYSTEMS

_REFERENCE = "tiktoken"  # the most widely used; ours is also compared with it
_ORDER = [OURS, *(name for name in SYSTEMS if name != OURS)]
_TITLES = {
    "train": "Training, MB/s",
    "encode": "Encoding one text, MB/s (second call)",
    "encode_documents": "Encoding documents of 4,096 characters, MB/s (second call)",
    "decode": "Decoding a million tokens, MB/s (second call)",
}


def report(rows: list[dict[str, Any]], text_bytes: dict[str, int], problems: list[Problem]) -> str:
    """Return the Markdown of `rows`, which are those of `--json`."""
    systems = {row["system"] for row in rows}
    lines = [
        f"{machine()}.",
        f"Versions: {versions(['numpy', 'numba', *(name for name in SYSTEMS if name in systems)])}.",
        f"Texts: {', '.join(f'{name} {size / 1e6:.1f} MB' for name, size in text_bytes.items())}.",
    ]
    for task, title in _TITLES.items():
        of_task = [row for row in rows if row["task"] == task]
        if of_task:
            keys = ["text", *(["merges"] if of_task[0]["merges"] else []), "vocab_size", "threads"]
            lines += ["", f"### {title}", "", *table(of_task, keys, _ORDER, _speed, "mb_per_second", _REFERENCE)]
            lines += ["", "Peak memory above that of the process with its input, MB:", ""]
            lines += table(of_task, keys, _ORDER, _peak)
    return "\n".join(lines + not_measured(problems))


def _speed(row: dict[str, Any]) -> str:
    speeds = [row[key] for key in ("mb_per_second", "second_mb_per_second") if key in row]
    first, *second = [f"{speed:.0f}" if speed >= 100 else f"{speed:.3g}" for speed in speeds]
    return f"{first} ({second[0]})" if second else first


def _peak(row: dict[str, Any]) -> str:
    return f"{row['peak_mb']:.0f}"
