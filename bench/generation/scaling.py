"""How the speed of generation depends on the size of the model and on the length of the text.

    python -m bench.generation.scaling [--systems NAME ...] [--dtypes NAME ...] [--contexts N ...] [--json FILE]

For each shape of `bench.common.shapes` and each context, a system reads a prompt that leaves room for a few tokens, and
generates these, one text at a time. The speed is their number divided by their time; the time to read the prompt and to
generate the first token is measured in the same way without them, and subtracted. Each is the median of measurements in
fresh processes, in which the systems take turns.
"""

import argparse
from dataclasses import asdict, replace
from statistics import median
from typing import Any

from bench.common.arguments import add_choices, add_json, check_positive, make_json_folder, make_parser
from bench.common.jobs import NotMeasured, run_job
from bench.common.shapes import SHAPES
from bench.common.tables import Problem, machine, not_measured, table, version_of, versions
from bench.generation.comparison import ELEMENT_BYTES
from bench.generation.systems import LIBRARIES, PACKAGES
from lm.atomic import write_json
from lm.device import pick_device
from lm.errors import exit_cleanly

_NEW_TOKENS = 32
_SECONDS = 0.5  # of timed generations per process
_TIMEOUT = 600.0


def main() -> None:
    args = parse_arguments()
    make_json_folder(args.json)
    rows, problems = [], []
    systems = []
    for name in args.systems:
        if version_of(PACKAGES.get(name, "torch")) is None:
            problems.append(Problem(name, f"{PACKAGES[name]} is not installed"))
        else:
            systems.append(name)
    try:
        for shape in args.shapes:
            for context in args.contexts:
                for dtype in args.dtypes:
                    rows += measure(systems, shape, context, dtype, args.repeats, problems)
                    if args.json:
                        write_json(args.json, rows)
    finally:  # also after Ctrl-C
        print(report(rows, problems))


def parse_arguments() -> argparse.Namespace:
    parser = make_parser("bench.generation.scaling", __doc__)
    add_choices(parser, "--shapes", SHAPES, list(SHAPES))
    add_choices(parser, "--dtypes", ELEMENT_BYTES, ["bfloat16", "int8"])
    add_choices(parser, "--systems", LIBRARIES, ["lm", "transformers", "llama.cpp"])
    parser.add_argument(
        "--contexts", nargs="+", type=int, default=[256, 1024, 4096], metavar="N", help="tokens; default: 256 1024 4096"
    )
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="default: 1")
    add_json(parser)
    args = parser.parse_args()
    check_positive("--repeats", [args.repeats])
    check_positive("--contexts", [context - _NEW_TOKENS - 1 for context in args.contexts])
    return args


def measure(
    systems: list[str], shape: str, context: int, dtype: str, repeats: int, problems: list[Problem]
) -> list[dict[str, Any]]:
    """Return a row per system, and add those that fail to `problems`."""
    model = asdict(replace(SHAPES[shape].model, context_length=context))
    shared = {"task": "generation", "model": model, "vocab_size": SHAPES[shape].vocab_size, "dtype": dtype}
    shared |= {"batch_size": 1, "prompt_tokens": context - _NEW_TOKENS - 1, "device": "cpu", "seconds": _SECONDS}
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats):
        for system in systems:
            job = shared | {"system": system}
            try:
                short, long = (
                    run_job("bench.generation.measure", job | {"new_tokens": count}, _TIMEOUT)["seconds"]
                    for count in (1, 1 + _NEW_TOKENS)
                )
                seconds.setdefault(system, []).append(long - short)
            except NotMeasured as error:
                problems.append(Problem(system, str(error), f"{shape}, {dtype}, context {context}"))
    case = {"task": "scaling", "shape": shape, "context": context, "dtype": dtype}
    return [
        case | {"system": system, "tokens_per_second": _NEW_TOKENS / median(of_system)}
        for system, of_system in seconds.items()
    ]


def report(rows: list[dict[str, Any]], problems: list[Problem]) -> str:
    """Return the Markdown of `rows`, which are those of `--json`."""
    lines = [f"{machine(pick_device('cpu'))}.", f"Versions: {versions(['torch', 'numba', *PACKAGES.values()])}."]
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        of_dtype = [row for row in rows if row["dtype"] == dtype]
        lines += ["", f"### {dtype}, one text, tokens per second at the end of the context", ""]
        lines += table(of_dtype, ("shape", "context"), list(LIBRARIES), _speed, "tokens_per_second")
    return "\n".join(lines + not_measured(problems))


def _speed(row: dict[str, Any]) -> str:
    return f"{row['tokens_per_second']:,.0f}"


if __name__ == "__main__":
    exit_cleanly(main)
