"""Generate with this project and with others, side by side: tokens a second, share of the limit, memory.

    python bench/generation.py [--quick] [--llama2c DIR] [--dtypes NAME ...] [--batch-sizes N ...] [--json FILE]

All systems continue the same one-token prompts greedily, with the same weights, made from a seed, until the context of
the shape is full: 255 new tokens for 17m. Before anything is timed, every system has generated in float32, and its ids
are compared with ours; one whose ids differ, or that fails, is named below the tables. A figure is the median of
measurements in fresh processes, in which the systems take turns, and each of these the median of whole generations;
measure_generation.py does that, and says how each system is used.

The limit is what a machine could do that reads every weight once a step, and does nothing else: rows times the bytes a
second at which this one reads an array of that size again, measured in the same run, over the bytes of the weights.
"""

import argparse
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
from comparison import Problem, machine, not_measured, table
from jobs import NotMeasured, run_job
from measure_generation import SYSTEMS as LIBRARIES
from shapes import SHAPES, Shape
from tqdm import tqdm

from lm.atomic import make_folder, write_json
from lm.device import pick_device
from lm.errors import UserError, exit_cleanly

SYSTEMS = [*LIBRARIES, "run.c"]
_MEASURE = Path(__file__).with_name("measure_generation.py")
_BYTES = {"float32": 4, "bfloat16": 2}

_REPEATS = 3
_SECONDS = 3.0  # of timed generations in a process
_QUICK_SECONDS = 1.0
_QUICK_SYSTEMS = ("lm", "transformers")
_QUICK_LIMIT = 200.0  # in seconds; what is under way then may take some more
_TIMEOUT = 600.0


@dataclass(frozen=True)
class Cell:
    """What the systems are compared on."""

    shape: str
    dtype: str
    batch_size: int

    def __str__(self) -> str:
        return f"{self.shape}, {self.dtype}, batch size {self.batch_size}"


Run = dict[str, Any]


def main() -> None:
    args = parse()
    started = time.monotonic()
    device = pick_device(args.device)
    cells = [Cell(shape, dtype, size) for shape in args.shapes for dtype in args.dtypes for size in args.batch_sizes]
    repeats, seconds = (1, _QUICK_SECONDS) if args.quick else (args.repeats, _SECONDS)
    if args.json:
        make_folder(args.json.parent)
    runs: dict[Cell, dict[str, list[Run]]] = {}
    limits: dict[Cell, float] = {}
    problems: list[Problem] = []
    job = {"device": device.type, "seconds": seconds, "source": str(args.llama2c)}
    systems = [name for name in args.systems if name != "run.c" or args.llama2c]
    if systems != args.systems:
        problems.append(Problem("run.c", "no --llama2c"))
    if args.quick:
        systems = [name for name in systems if name in _QUICK_SYSTEMS]
    try:
        for _ in measure(cells, systems, repeats, job, runs, limits, problems):
            if args.json:
                write_json(args.json, summary(runs, limits))
            if args.quick and time.monotonic() - started > _QUICK_LIMIT:
                problems.append(Problem("the rest", "--quick ends within four minutes"))
                break
    finally:  # on Ctrl-C too
        print(report(summary(runs, limits), device, problems))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def choose(flag: str, choices: Any, default: Any) -> None:
        text = f"{', '.join(choices)}; default: {' '.join(default)}"
        parser.add_argument(flag, nargs="+", choices=choices, default=default, metavar="NAME", help=text)

    choose("--shapes", list(SHAPES), ["17m"])
    choose("--dtypes", list(_BYTES), list(_BYTES))
    choose("--systems", SYSTEMS, SYSTEMS)
    parser.add_argument(
        "--llama2c", type=Path, metavar="DIR", help="a checkout of llama2.c; compiles and runs its run.c"
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16], metavar="N", help="texts; default: 1 16")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    parser.add_argument("--repeats", type=int, default=_REPEATS, metavar="N", help=f"default: {_REPEATS}")
    parser.add_argument("--quick", action="store_true", help="lm and transformers, once and shortly: within 4 minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there, a row for each")
    args = parser.parse_args()
    for number in [args.repeats, *args.batch_sizes]:
        if number < 1:
            raise UserError(f"--repeats, --batch-sizes: expected 1 or more, got {number}")
    if args.llama2c and not (args.llama2c / "run.c").is_file():
        raise UserError(f"--llama2c: {args.llama2c} has no run.c; expected the folder of a checkout")
    return args


def measure(
    cells: list[Cell],
    systems: list[str],
    repeats: int,
    job: dict[str, Any],
    runs: dict[Cell, dict[str, list[Run]]],
    limits: dict[Cell, float],
    problems: list[Problem],
) -> Iterator[None]:
    """Measure every system on every cell, adding to `runs`, `limits` and `problems`; yields after each measurement."""
    same: dict[tuple[str, int], list[str]] = {}  # the systems whose ids in float32 are those of the first
    with tqdm(total=len(cells) * len(systems) * repeats, unit="process") as bar:
        for cell in cells:
            shape = SHAPES[cell.shape]
            of_cell = runs.setdefault(cell, {})
            shared = job | {"task": "generation", "model": asdict(shape.model), "vocab_size": shape.vocab_size}
            shared |= {"batch_size": cell.batch_size, "new_tokens": shape.context_length - 1}
            key = cell.shape, cell.batch_size
            if key not in same:
                bar.set_postfix_str(f"{cell.shape}, batch size {cell.batch_size}, comparing ids")
                same[key] = equal_systems(systems, shared, problems, f"{cell.shape}, batch size {cell.batch_size}")
            weight_bytes = weights_read(shape) * _BYTES[cell.dtype]
            read = run_job(_MEASURE, job | {"task": "bandwidth", "bytes": weight_bytes}, _TIMEOUT)
            limits[cell] = cell.batch_size * read["bytes_per_second"] / weight_bytes
            for _ in range(repeats):
                for system in same[key]:
                    bar.set_postfix_str(f"{cell}, {system}")
                    try:
                        run = run_job(_MEASURE, shared | {"system": system, "dtype": cell.dtype}, _TIMEOUT)
                        of_cell.setdefault(system, []).append(run)
                    except NotMeasured as error:
                        problems.append(Problem(system, str(error), str(cell)))
                    bar.update()
                    yield


def equal_systems(systems: list[str], shared: dict[str, Any], problems: list[Problem], where: str) -> list[str]:
    """The systems that give the ids of the first one that gives any, in float32; the others become problems."""
    expected, equal = None, []
    for system in systems:
        try:
            ids = run_job(_MEASURE, shared | {"system": system, "dtype": "float32", "seconds": 0.0}, _TIMEOUT)["ids"]
        except NotMeasured as error:
            problems.append(Problem(system, str(error), where))
            continue
        expected = expected or ids
        if ids == expected:
            equal.append(system)
        else:
            problems.append(Problem(system, f"its ids are not those of {equal[0]}", where))
    return equal


def weights_read(shape: Shape) -> int:
    """The weights that a step reads for any number of rows: all but the embeddings, of which it takes a row a token."""
    block = 4 * shape.d_model**2 + 3 * shape.d_model * shape.d_ff + 2 * shape.d_model
    return shape.num_layers * block + shape.d_model + shape.vocab_size * shape.d_model


def summary(runs: dict[Cell, dict[str, list[Run]]], limits: dict[Cell, float]) -> list[dict[str, Any]]:
    """A row for each cell and system that has a figure."""
    rows = []
    for cell, of_cell in runs.items():
        tokens = cell.batch_size * (SHAPES[cell.shape].context_length - 1)
        for system, of_system in of_cell.items():
            speed = tokens / median(run["seconds"] for run in of_system)
            figures = {
                "system": system,
                "tokens_per_second": speed,
                "share_of_limit": speed / limits[cell],
                "peak_mb": median(run["peak_mb"] for run in of_system),
                "measurements": len(of_system),
            }
            rows.append({"task": "generation"} | asdict(cell) | figures)
    return rows


def report(rows: list[dict[str, Any]], device: torch.device, problems: list[Problem]) -> str:
    """Markdown of the rows."""
    versions = {name: metadata.version(name) for name in ("torch", "numba", "transformers")}
    named = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    lines = [
        f"{machine()}, {named}.",
        f"Versions: Python {platform.python_version()}, {', '.join(map(' '.join, versions.items()))}.",
    ]
    keys = ("dtype", "batch_size")
    for shape in dict.fromkeys(row["shape"] for row in rows):
        of_shape = [row for row in rows if row["shape"] == shape]
        lines += ["", f"### {shape}, {SHAPES[shape].context_length - 1} new tokens, tokens/s (share of the limit)", ""]
        lines += table(of_shape, keys, SYSTEMS, _speed, "tokens_per_second", "transformers")
        lines += ["", "Peak memory, MB:", "", *table(of_shape, keys, SYSTEMS, _peak)]
    return "\n".join(lines + not_measured(problems))


def _speed(row: dict[str, Any]) -> str:
    return f"{row['tokens_per_second']:,.0f} ({row['share_of_limit']:.0%})"


def _peak(row: dict[str, Any]) -> str:
    return f"{row['peak_mb']:.0f}"


if __name__ == "__main__":
    exit_cleanly(main)
