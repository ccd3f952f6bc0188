"""The Markdown that every benchmark prints: the machine, a table with a column per system, what was not measured."""

import os
import platform
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

OURS = "lm"

Row = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """Why a system was not measured, and in which case; an empty case means in none."""

    system: str
    reason: str
    case: str = ""


def machine(device: "torch.device | None" = None) -> str:
    """Describe this machine in one line; with a `device`, also the GPU or the number of PyTorch's threads."""
    parts = [_processor(), f"{os.cpu_count()} cores", platform.system()]
    if device is not None:
        import torch

        on_gpu = device.type == "cuda"
        parts.append(torch.cuda.get_device_name(device) if on_gpu else f"{torch.get_num_threads()} threads")
    return ", ".join(parts)


def versions(packages: Sequence[str]) -> str:
    """Return the versions of Python and of those packages that are installed, in one line."""
    installed = {name: version for name in packages if (version := version_of(name))}
    return ", ".join(
        f"{name} {version}" for name, version in {"Python": platform.python_version(), **installed}.items()
    )


def version_of(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def table(
    rows: list[Row],
    keys: Sequence[str],
    order: Sequence[str],
    show: Callable[[Row], str],
    speed: str | None = None,
    reference: str | None = None,
) -> list[str]:
    """Return the lines of a table with a row per combination of `keys` and a column per system.

    Args:
        rows: measurements; each has a `system`, the keys, and what `show` needs.
        keys: the names of the first columns.
        order: the systems in the order of their columns; those without a row are left out.
        show: formats the cell of a measurement.
        speed: the key of a speed; a column is added with our speed divided by that of the fastest other system.
        reference: a system; if it is among the rows, another column is added with our speed divided by its speed.
    """
    measured = {row["system"] for row in rows}
    names = [name for name in order if name in measured]
    by_case: dict[tuple[str, ...], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        by_case[tuple(str(row[key]) for key in keys)][row["system"]] = row
    ratios = [f"{OURS} / fastest other"] * (speed is not None) + [f"{OURS} / {reference}"] * (reference in names)
    lines = [[*keys, *names, *ratios]]
    lines.append(["---"] * len(lines[0]))
    for case, systems in by_case.items():
        line = [*case, *(show(systems[name]) if name in systems else "-" for name in names)]
        speeds = {name: row[speed] for name, row in systems.items()} if speed else {}
        ours = speeds.pop(OURS, None)
        others = [max(speeds.values(), default=None), speeds.get(reference or "")][: len(ratios)]
        line += [f"{ours / other:.2f}" if ours and other else "-" for other in others]
        lines.append(line)
    return [f"| {' | '.join(line)} |" for line in lines]


def not_measured(problems: list[Problem]) -> list[str]:
    """Return one line per system and reason, with the first of the cases and the number of the others."""
    cases = defaultdict(list)
    for problem in problems:
        cases[problem.system, problem.reason].append(problem.case)
    lines = ["", "Not measured:", ""] if cases else []
    return lines + [f"- {system}: {reason}{_where(where)}" for (system, reason), where in cases.items()]


def _where(cases: list[str]) -> str:
    more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
    return f" ({cases[0]}{more})" if cases[0] else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
