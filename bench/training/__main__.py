"""Train with this project and with others, side by side: tokens per second, MFU, memory.

    python -m bench.training [--quick] [--nanogpt DIR] [--llama2c DIR] [--json FILE]

All systems train the same shape with an untied head, on the same tokens, in the same precision, with AdamW of the same
settings and gradients clipped at norm 1. A result is the median of measurements in fresh processes, in which the
systems take turns; each of these is the median of its steps. A system with several attention implementations is tried
once with each, and then measured with the fastest. `mfu` is tokens per second times the FLOPs per token of
lm.model.cost, the same for all, divided by the FLOP/s of a large matrix multiplication in the same precision, measured
in the same run.

Losses are checked: the first loss of a system that starts with our weights must equal ours, and that of any system must
be within 5% of ln(vocab_size). A system that differs, fails or is missing is listed below the tables.

The allocator `default` is the C library's default; `tuned` keeps freed memory. This project's training loop tunes the
allocator itself, so its results are the same for both; with `tuned` the others are tuned too.

The shapes are Llama-like and are named after their numbers of parameters. The text is generated stories.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bench.common.arguments import (
    add_checkout,
    add_choices,
    add_json,
    check_checkout,
    check_positive,
    make_json_folder,
    make_parser,
)
from bench.common.models import CHECKOUTS
from bench.common.shapes import SHAPES
from bench.common.tables import OURS, Problem, version_of
from bench.common.tokens import write_tokens
from bench.training.comparison import COMPARED, Case, Results, compare, summarize
from bench.training.report import report
from lm.atomic import write_json
from lm.device import pick_device
from lm.errors import exit_cleanly

_DTYPES = ["bfloat16", "float32"]
_ALLOCATORS = ["default", "tuned"]
_COMPILE = {"both": [True, False], "yes": [True], "no": [False]}

_REPEATS = 3
_SECONDS = 6.0  # of timed steps per process
_QUICK_SECONDS = 3.0
_QUICK_LIMIT = 190.0  # seconds; the measurement under way is finished after that


def main() -> None:
    args = parse_arguments()
    started = time.monotonic()
    device = pick_device(args.device)
    checkouts, missing = find_systems(args)
    repeats, seconds = (1, _QUICK_SECONDS) if args.quick else (args.repeats, _SECONDS)
    make_json_folder(args.json)
    results = Results(problems=missing)
    with TemporaryDirectory() as folder:
        job = {"device": device.type, "tokens": str(write_tokens(Path(folder))), "seconds": seconds}
        try:
            for _ in compare(results, cases_of(args, device), checkouts, args.allocators, repeats, job):
                if args.json:
                    write_json(args.json, summarize(results, args.allocators))
                if args.quick and time.monotonic() - started > _QUICK_LIMIT:
                    results.problems.append(Problem("the rest", "--quick ends after four minutes"))
                    break
        finally:  # also after Ctrl-C
            print(report(summarize(results, args.allocators), results.peak_flops, device, results.problems))


def parse_arguments() -> argparse.Namespace:
    parser = make_parser("bench.training", __doc__)
    add_choices(parser, "--shapes", SHAPES, None, "17m 0.8m, on a GPU 125m")
    add_choices(parser, "--dtypes", _DTYPES, _DTYPES)
    add_choices(parser, "--systems", COMPARED, COMPARED)
    add_choices(parser, "--allocators", _ALLOCATORS, _ALLOCATORS)
    parser.add_argument("--compile", choices=_COMPILE, default="both", help="default: both")
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, metavar="N", help="sequences; default: 8, and 32 in compiled bfloat16"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    parser.add_argument("--repeats", type=int, default=_REPEATS, metavar="N", help=f"default: {_REPEATS}")
    for name in CHECKOUTS:
        add_checkout(parser, name, "model.py")
    parser.add_argument(
        "--quick", action="store_true", help="lm and transformers, measured once in two cases of 17m: four minutes"
    )
    add_json(parser)
    args = parser.parse_args()
    check_positive("--repeats", [args.repeats])
    check_positive("--batch-sizes", args.batch_sizes or [])
    for name in CHECKOUTS:
        check_checkout(name, getattr(args, name), "model.py")
    return args


def find_systems(args: argparse.Namespace) -> tuple[dict[str, Path | None], list[Problem]]:
    """Return the systems that can run, each with the folder of its checkout if it needs one, and what is missing."""
    checkouts: dict[str, Path | None] = {}
    missing = []
    for name in ["lm", "transformers"] if args.quick else args.systems:
        if name in CHECKOUTS:
            folder = getattr(args, name)
            if folder is None:
                missing.append(Problem(name, f"no --{name}"))
            else:
                checkouts[name] = folder.absolute()
        elif name == OURS or version_of(name):
            checkouts[name] = None
        else:
            missing.append(Problem(name, "not installed"))
    return checkouts, missing


def cases_of(args: argparse.Namespace, device: torch.device) -> list[Case]:
    if args.quick:
        return [Case("17m", "bfloat16", True, 8), Case("17m", "float32", False, 8)]
    cases = []
    for shape in args.shapes or (["125m"] if device.type == "cuda" else ["17m", "0.8m"]):
        for dtype in args.dtypes:
            for compiled in _COMPILE[args.compile]:
                default = [8, 32] if compiled and dtype == "bfloat16" else [8]
                cases += [Case(shape, dtype, compiled, size) for size in args.batch_sizes or default]
    return cases


if __name__ == "__main__":
    exit_cleanly(main)
