"""Generate with this project and with others, side by side: tokens per second, share of the limit, memory.

    python -m bench.generation [--quick] [--llama2c DIR] [--dtypes NAME ...] [--batch-sizes N ...] [--prompts N ...]

All systems continue the same one-token prompts greedily, with the same weights, drawn from a seed, until the context of
the shape is full: 255 new tokens for 17m. After longer prompts, the time to the first token is measured. Before
anything is timed, every system generates in float32, and its ids are compared with ours. A system whose ids differ, or
that fails, is listed below the tables. A result is the median of measurements in fresh processes, in which the systems
take turns; each of these is the median of whole generations.

The limit is the speed of a machine that reads every weight once per step and does nothing else: the number of rows,
times the bytes per second at which this machine reads an array of that size again, measured in the same run, divided by
the bytes of the weights.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from bench.common.arguments import add_choices, add_json, check_checkout, check_positive, make_json_folder, make_parser
from bench.common.shapes import SHAPES
from bench.common.tables import Problem, machine, not_measured, table, version_of, versions
from bench.generation.comparison import ELEMENT_BYTES, Case, Results, compare, summarize
from bench.generation.systems import PACKAGES, SYSTEMS
from lm.atomic import write_json
from lm.device import pick_device
from lm.errors import UserError, exit_cleanly

_REPEATS = 3
_SECONDS = 3.0  # of timed generations per process
_QUICK_SECONDS = 1.0
_QUICK_SYSTEMS = ["lm", "transformers"]
_QUICK_LIMIT = 200.0  # seconds; the measurement under way is finished after that


def main() -> None:
    args = parse_arguments()
    started = time.monotonic()
    device = pick_device(args.device)
    cases = [
        case
        for shape in args.shapes
        for dtype in args.dtypes
        for case in (
            *(Case(shape, dtype, size) for size in args.batch_sizes),
            *(Case(shape, dtype, 1, tokens) for tokens in args.prompts),
        )
    ]
    repeats, seconds = (1, _QUICK_SECONDS) if args.quick else (args.repeats, _SECONDS)
    make_json_folder(args.json)
    results = Results()
    systems = find_systems(args, results.problems)
    job = {"device": device.type, "seconds": seconds, "llama2c": str(args.llama2c.absolute()) if args.llama2c else None}
    try:
        for _ in compare(results, cases, systems, repeats, job):
            if args.json:
                write_json(args.json, summarize(results))
            if args.quick and time.monotonic() - started > _QUICK_LIMIT:
                results.problems.append(Problem("the rest", "--quick ends within four minutes"))
                break
    finally:  # also after Ctrl-C
        print(report(summarize(results), device, results.problems))


def parse_arguments() -> argparse.Namespace:
    parser = make_parser("bench.generation", __doc__)
    add_choices(parser, "--shapes", SHAPES, ["17m"])
    add_choices(parser, "--dtypes", ELEMENT_BYTES, list(ELEMENT_BYTES))
    add_choices(parser, "--systems", SYSTEMS, SYSTEMS)
    parser.add_argument(
        "--llama2c", type=Path, metavar="DIR", help="a checkout of llama2.c, to compile and run its run.c"
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16], metavar="N", help="texts; default: 1 16")
    parser.add_argument(
        "--prompts", nargs="*", type=int, default=[16, 256, 1024], metavar="N", help="tokens; default: 16 256 1024"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    parser.add_argument("--repeats", type=int, default=_REPEATS, metavar="N", help=f"default: {_REPEATS}")
    parser.add_argument(
        "--quick", action="store_true", help="lm and transformers, one short measurement each: within four minutes"
    )
    add_json(parser)
    args = parser.parse_args()
    check_positive("--repeats", [args.repeats])
    check_positive("--batch-sizes", args.batch_sizes)
    if min(args.prompts, default=2) < 2:
        raise UserError(f"--prompts: expected 2 or more tokens, got {min(args.prompts)}")
    check_checkout("llama2c", args.llama2c, "run.c")
    return args


def find_systems(args: argparse.Namespace, problems: list[Problem]) -> list[str]:
    """Return the systems that can run, and add those that are missing to `problems`."""
    systems = []
    for name in args.systems:
        if args.quick and name not in _QUICK_SYSTEMS:
            continue
        if name == "run.c" and args.llama2c is None:
            problems.append(Problem(name, "no --llama2c"))
        elif version_of(PACKAGES.get(name, "torch")) is None:
            problems.append(Problem(name, f"{PACKAGES[name]} is not installed"))
        else:
            systems.append(name)
    return systems


def report(rows: list[dict[str, Any]], device: torch.device, problems: list[Problem]) -> str:
    """Return the Markdown of `rows`, which are those of `--json`."""
    lines = [f"{machine(device)}.", f"Versions: {versions(['torch', 'numba', *PACKAGES.values()])}."]
    keys = ("dtype", "batch_size")
    for shape in dict.fromkeys(row["shape"] for row in rows):
        of_shape = [row for row in rows if row["shape"] == shape]
        generations = [row for row in of_shape if row["prompt_tokens"] == 1]
        prompts = [row for row in of_shape if row["prompt_tokens"] > 1]
        if generations:
            new_tokens = SHAPES[shape].context_length - 1
            lines += ["", f"### {shape}, {new_tokens} new tokens, tokens per second (share of the limit)", ""]
            lines += table(generations, keys, SYSTEMS, _speed, "tokens_per_second", "transformers")
            lines += ["", "Peak memory, MB:", "", *table(generations, keys, SYSTEMS, _peak)]
        if prompts:
            lines += ["", f"### {shape}, time to the first token, ms", ""]
            lines += table(prompts, ("dtype", "prompt_tokens"), SYSTEMS, _milliseconds, "tokens_per_second")
    return "\n".join(lines + not_measured(problems))


def _speed(row: dict[str, Any]) -> str:
    return f"{row['tokens_per_second']:,.0f} ({row['share_of_limit']:.0%})"


def _milliseconds(row: dict[str, Any]) -> str:
    return f"{1e3 / row['tokens_per_second']:.1f}"


def _peak(row: dict[str, Any]) -> str:
    return f"{row['peak_mb']:.0f}"


if __name__ == "__main__":
    exit_cleanly(main)
