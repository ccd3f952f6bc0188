"""Train with this project and with others, side by side: tokens a second, share of the machine's peak, memory.

    python bench/training.py [--quick] [--nanogpt DIR] [--llama2c DIR] [--litgpt PYTHON] [--json FILE]

All systems train the same shape with a head of its own, on the same tokens, in the same precision, with AdamW of the
same settings and gradients clipped at norm 1; learners.py says how each is used. A figure is the median of
measurements in fresh processes, in which the systems take turns, and each of these the median of its steps;
measure_training.py does that. A system that has several ways to compute attention is tried once with each, and then
measured with the fastest. `mfu` is tokens a second times lm.model.cost's FLOPs a token, the same for all, over
the FLOP/s of a large matrix product in the same precision, measured in the same run.

Losses are checked: the first one of a system that starts with our weights must be ours, and that of any system must lie
within 5% of ln(vocab_size). One that differs, fails or is missing is named below the tables.

The allocator `default` is the C library's as it comes; `tuned` keeps what is freed. This project's training loop asks
for that itself, so that its figures are the same in both; in `tuned` the others get it too.

The shapes are Llama-like; laptop is the model of params.yaml as released. The text is the story grammar's.
"""

import argparse
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from comparison import OURS, Problem, machine, not_measured, table
from jobs import NotMeasured, run_job
from learners import SAME_FUNCTION, SYSTEMS
from shapes import OPTIM, SHAPES, write_tokens
from tqdm import tqdm

from lm.atomic import make_folder, write_json
from lm.device import pick_device
from lm.errors import UserError, exit_cleanly
from lm.model.cost import training_flops_per_token

_MEASURE = Path(__file__).with_name("measure_training.py")


_DTYPES = ("bfloat16", "float32")
_ALLOCATORS = ("default", "tuned")

_REPEATS = 3
_SECONDS = 6.0  # of timed steps in a process
_QUICK_SECONDS = 3.0
_QUICK_LIMIT = 190.0  # in seconds; what is under way then may take some more
_TIMEOUT = 900.0

_START_TOLERANCE = 0.05  # of ln(vocab_size)
_SAME_FUNCTION_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # in nats; bfloat16 has 8 bits


@dataclass(frozen=True)
class Cell:
    """What the systems are compared on."""

    shape: str
    dtype: str
    compile: bool
    batch_size: int

    def __str__(self) -> str:
        return f"{self.shape}, {self.dtype}, {'compiled' if self.compile else 'eager'}, batch size {self.batch_size}"


@dataclass(frozen=True)
class Setup:
    """A system as it is measured on a cell."""

    system: str
    allocator: str
    attention: str


Run = dict[str, Any]


def main() -> None:
    args = parse()
    started = time.monotonic()
    device = pick_device(args.device)
    systems, missing = present(args)
    cells = plan(args, device)
    repeats, seconds = (1, _QUICK_SECONDS) if args.quick else (args.repeats, _SECONDS)
    if args.json:
        make_folder(args.json.parent)
    runs: dict[Cell, dict[Setup, list[Run]]] = {}
    peaks: dict[str, float] = {}
    problems = missing
    with TemporaryDirectory() as folder:
        tokens = write_tokens(Path(folder))
        job = {"device": device.type, "tokens": str(tokens), "seconds": seconds}
        try:
            for _ in measure(cells, systems, args.allocators, repeats, job, runs, peaks, problems):
                if args.json:
                    write_json(args.json, summary(runs, peaks, args.allocators))
                if args.quick and time.monotonic() - started > _QUICK_LIMIT:
                    problems.append(Problem("the rest", "--quick ends after four minutes"))
                    break
        finally:  # on Ctrl-C too
            print(report(summary(runs, peaks, args.allocators), peaks, device, problems))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def choose(flag: str, choices: Any, default: Any, text: str) -> None:
        parser.add_argument(flag, nargs="+", choices=choices, default=default, metavar="NAME", help=text)

    choose("--shapes", list(SHAPES), None, f"{', '.join(SHAPES)}; default: 17m laptop, on a GPU 125m")
    choose("--dtypes", _DTYPES, list(_DTYPES), "bfloat16, float32; default: both")
    choose("--systems", list(SYSTEMS), list(SYSTEMS), f"{', '.join(SYSTEMS)}; default: all")
    choose("--allocators", _ALLOCATORS, list(_ALLOCATORS), "default, tuned; default: both")
    parser.add_argument("--compile", choices=["both", "yes", "no"], default="both", help="default: both")
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, metavar="N", help="sequences; default: 8, and 32 in compiled bfloat16"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    parser.add_argument("--repeats", type=int, default=_REPEATS, metavar="N", help=f"default: {_REPEATS}")
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a checkout of nanoGPT; runs its model.py")
    parser.add_argument("--llama2c", type=Path, metavar="DIR", help="a checkout of llama2.c; runs its model.py")
    parser.add_argument(
        "--litgpt", type=Path, metavar="PYTHON", help="the interpreter of an environment of its own that has litgpt"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one measurement of lm and transformers on two cells of 17m: 4 minutes"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there, a row for each")
    args = parser.parse_args()
    for number in [args.repeats, *(args.batch_sizes or [])]:
        if number < 1:
            raise UserError(f"--repeats, --batch-sizes: expected 1 or more, got {number}")
    for flag in ("nanogpt", "llama2c"):
        path = getattr(args, flag)
        if path and not (path / "model.py").is_file():
            raise UserError(f"--{flag}: {path} has no model.py; expected the folder of a checkout")
    if args.litgpt and not args.litgpt.is_file():
        raise UserError(f"--litgpt: {args.litgpt} is no file; expected a Python interpreter")
    return args


def present(args: argparse.Namespace) -> tuple[dict[str, Path | None], list[Problem]]:
    """The systems that can run, with the path of a checkout or an interpreter, and a problem for each of the others."""
    systems: dict[str, Path | None] = {}
    missing = []
    for name in SYSTEMS:
        if name not in (("lm", "transformers") if args.quick else args.systems):
            continue
        path = getattr(args, name, None)
        if hasattr(args, name) and path is None:
            missing.append(Problem(name, f"no --{name}"))
        elif name == "transformers" and not _installed(name):
            missing.append(Problem(name, "not installed"))
        else:
            systems[name] = path.absolute() if path else None
    return systems, missing


def plan(args: argparse.Namespace, device: torch.device) -> list[Cell]:
    if args.quick:
        return [Cell("17m", "bfloat16", True, 8), Cell("17m", "float32", False, 8)]
    shapes = args.shapes or (["125m"] if device.type == "cuda" else ["17m", "laptop"])
    cells = []
    for shape in shapes:
        for dtype in args.dtypes:
            for compiled in {"both": (True, False), "yes": (True,), "no": (False,)}[args.compile]:
                default = [8, 32] if compiled and dtype == "bfloat16" else [8]
                cells += [Cell(shape, dtype, compiled, size) for size in args.batch_sizes or default]
    return cells


def measure(
    cells: list[Cell],
    systems: dict[str, Path | None],
    allocators: list[str],
    repeats: int,
    job: dict[str, Any],
    runs: dict[Cell, dict[Setup, list[Run]]],
    peaks: dict[str, float],
    problems: list[Problem],
) -> Iterator[None]:
    """Measure every system on every cell, adding to `runs`, `peaks` and `problems`; yields after each measurement.

    The ways to compute attention are tried once, with one allocator; then a system goes on with its fastest.
    """
    per_cell = [setup for name in systems for setup in setups(name, allocators, job["device"])]
    first = {setup.system: setup.allocator for setup in reversed(per_cell)}
    tried = sum(setup.allocator == first[setup.system] for setup in per_cell)
    repeated = len({(setup.system, setup.allocator) for setup in per_cell})
    with tqdm(total=len(cells) * (tried + repeats * repeated - len(systems)), unit="process") as bar:
        for cell in cells:
            shape = SHAPES[cell.shape]
            of_cell = runs.setdefault(cell, {})
            shared = job | asdict(cell) | {"task": "training", "vocab_size": shape.vocab_size}
            shared |= {"model": asdict(shape.model), "optim": asdict(OPTIM)}
            # Anew for each cell, and the most of all: a machine that others use is not always at its best.
            peaks[cell.dtype] = max(peak(cell.dtype, job), peaks.get(cell.dtype, 0.0))
            for repeat in range(repeats):
                for setup in per_cell:
                    is_trial = repeat == 0 and setup.allocator == first[setup.system]
                    if not is_trial and setup.attention != fastest_attention(of_cell, setup.system):
                        continue
                    bar.set_postfix_str(f"{cell}, {setup.system}, {setup.attention}")
                    try:
                        run = train(shared | asdict(setup), systems[setup.system])
                        check_start(run, setup, of_cell, cell.dtype, shape.vocab_size)
                        of_cell.setdefault(setup, []).append(run)
                    except NotMeasured as error:
                        problems.append(Problem(setup.system, str(error), f"{cell}, {setup.attention} attention"))
                    bar.update()
                    yield


def peak(dtype: str, job: dict[str, Any]) -> float:
    """FLOP/s of a large matrix product."""
    try:
        return run_job(_MEASURE, job | {"task": "product", "dtype": dtype}, _TIMEOUT)["flops"]
    except NotMeasured as error:
        raise UserError(f"the peak of this machine in {dtype} cannot be measured: {error}") from error


def setups(system: str, allocators: list[str], device: str) -> list[Setup]:
    """What is tried of a system; ours is measured once, since it tunes the allocator itself."""
    own = ["tuned"] if system == OURS else allocators
    return [
        Setup(system, allocator, attention) for allocator in own for attention in SYSTEMS[system].attentions[device]
    ]


def train(job: dict[str, Any], path: Path | None) -> Run:
    """What measure_training.py finds; `path` is the system's checkout, or its interpreter."""
    is_python = job["system"] == "litgpt"
    job = job | {"source": str(path) if path and not is_python else None}
    return run_job(_MEASURE, job, _TIMEOUT, str(path) if is_python else None)


def check_start(run: Run, setup: Setup, of_cell: dict[Setup, list[Run]], dtype: str, vocab_size: int) -> None:
    """Refuse a run whose first loss shows that it does not do the same work."""
    loss, expected = run["first_loss"], math.log(vocab_size)
    if not abs(loss - expected) <= _START_TOLERANCE * expected:
        raise NotMeasured(f"starts at a loss of {loss:.3f}, far from ln(vocab_size) = {expected:.3f}")
    ours = next((runs[0]["first_loss"] for other, runs in of_cell.items() if other.system == OURS), None)
    if ours is not None and setup.system in SAME_FUNCTION and abs(loss - ours) > _SAME_FUNCTION_TOLERANCE[dtype]:
        raise NotMeasured(f"starts at a loss of {loss:.5f}, ours with the same weights at {ours:.5f}")


def fastest_attention(of_cell: dict[Setup, list[Run]], system: str) -> str | None:
    """The attention of a system's fastest setup, or None if it failed with each."""
    of_system = [setup for setup in of_cell if setup.system == system]
    return min(of_system, key=lambda setup: _seconds(of_cell[setup])).attention if of_system else None


def fastest(of_cell: dict[Setup, list[Run]]) -> list[Setup]:
    """For each system and allocator the setup whose attention is the fastest."""
    best: dict[tuple[str, str], Setup] = {}
    for setup in sorted(of_cell, key=lambda setup: _seconds(of_cell[setup]), reverse=True):
        best[setup.system, setup.allocator] = setup
    return [setup for setup in of_cell if setup in best.values()]


def summary(
    runs: dict[Cell, dict[Setup, list[Run]]], peaks: dict[str, float], allocators: list[str]
) -> list[dict[str, Any]]:
    """A row for each cell, allocator and system that has a figure, ours under each allocator."""
    rows = []
    for cell, of_cell in runs.items():
        shape = SHAPES[cell.shape]
        flops = training_flops_per_token(shape.model, shape.vocab_size)
        tokens = cell.batch_size * shape.context_length
        for setup in fastest(of_cell):
            best = of_cell[setup]
            speeds = {
                other.attention: round(tokens / _seconds(of_other))
                for other, of_other in of_cell.items()
                if (other.system, other.allocator) == (setup.system, setup.allocator)
            }
            seconds = _seconds(best)
            figures = {
                "system": setup.system,
                "tokens_per_second": tokens / seconds,
                "mfu": tokens / seconds * flops / peaks[cell.dtype],
                "peak_mb": median(run["peak_mb"] for run in best),
                "seconds_per_step": seconds,
                "first_step_seconds": median(run["first_step_seconds"] for run in best),
                "first_loss": best[0]["first_loss"],
                "parameters": best[0]["parameters"],
                "attention": setup.attention,
                "tokens_per_second_by_attention": speeds,
                "measurements": len(best),
            }
            for allocator in allocators if setup.system == OURS else [setup.allocator]:
                rows.append({"task": "training"} | asdict(cell) | {"allocator": allocator} | figures)
    return rows


def report(rows: list[dict[str, Any]], peaks: dict[str, float], device: torch.device, problems: list[Problem]) -> str:
    """Markdown of the rows."""
    products = ", ".join(f"{dtype} {flops / 1e9:,.0f} GFLOP/s" for dtype, flops in peaks.items())
    versions = {name: metadata.version(name) for name in ("torch", "transformers") if _installed(name)}
    named = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    lines = [
        f"{machine()}, {named}.",
        f"Versions: Python {platform.python_version()}, {', '.join(map(' '.join, versions.items()))}.",
        f"A large matrix product: {products}.",
        f"`{OURS}` tunes the allocator itself; its figures under default and tuned are the same measurements.",
    ]
    keys = ("dtype", "compile", "batch_size", "allocator")
    for shape in dict.fromkeys(row["shape"] for row in rows):
        of_shape = [row for row in rows if row["shape"] == shape]
        lines += ["", f"### {shape}, tokens/s (share of peak)", ""]
        lines += table(of_shape, keys, list(SYSTEMS), _speed, "tokens_per_second")
        lines += [
            "",
            "Peak memory, MB:",
            "",
            *table(of_shape, keys, list(SYSTEMS), lambda row: f"{row['peak_mb']:.0f}"),
        ]
        lines += ["", "Attention, tokens/s:", "", *table(of_shape, keys, list(SYSTEMS), _by_attention)]
        parameters = {row["system"]: f"{row['system']} {row['parameters']:,}" for row in of_shape}
        losses = {row["system"]: f"{row['system']} {row['first_loss']:.4f}" for row in of_shape}
        lines += ["", f"Parameters: {', '.join(parameters.values())}.", f"First loss: {', '.join(losses.values())}."]
    return "\n".join(lines + not_measured(problems))


def _speed(row: dict[str, Any]) -> str:
    return f"{row['tokens_per_second']:,.0f} ({row['mfu']:.0%})"


def _by_attention(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {speed:,}" for name, speed in row["tokens_per_second_by_attention"].items())


def _seconds(runs: list[Run]) -> float:
    return median(run["seconds_per_step"] for run in runs)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    exit_cleanly(main)
