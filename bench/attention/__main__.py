"""Time causal attention: this project's FlashAttention-2 beside PyTorch's kernels and the plain equation.

    python -m bench.attention [--quick] [--json FILE]

The systems: `flash` is the kernels for Triton or, on a CPU, for numba; `tiled` is the same algorithm in PyTorch;
`reference` computes the scores as one matrix; and `sdpa` is PyTorch's scaled_dot_product_attention. On a GPU, sdpa is
restricted to its FlashAttention kernel in bfloat16, and to the memory-efficient one in float32, which the former does
not support.

A result is for the forward pass, or for forward and backward together, of 16,384 tokens (on a CPU 2,048) or one longer
sequence, with heads of 2,048 dimensions in total (on a CPU 256). Its milliseconds are the median of calls after a
warm-up, on a GPU between CUDA events. Its FLOPs count the half of the scores that is not masked, and the backward pass
as 2.5 times the forward pass, as in the paper. Its megabytes (10**6 bytes) are the peak that PyTorch allocates on a
GPU, without the inputs. What is timed is first compared with sdpa: `max_error` is the largest difference in any tensor,
output or gradient, relative to the largest value of sdpa in that tensor.

Each result is printed to stderr as soon as it is known, and the file of --json always has all results so far.
"""

import argparse
import sys
from dataclasses import asdict
from itertools import product
from typing import Any

import torch

from bench.attention.measure import DTYPES, PASSES, SDPA_KERNELS, Case, call, make_inputs, measure, sdpa, systems
from bench.common.arguments import add_json, make_json_folder, make_parser
from bench.common.jobs import NotMeasured
from bench.common.tables import Problem, machine, not_measured, table, versions
from lm.atomic import write_json
from lm.errors import UserError, exit_cleanly

_LENGTHS = {"cuda": [128, 256, 512, 1024, 2048, 4096, 16384, 65536], "cpu": [128, 256, 512, 1024]}
_D_HEADS = {"cuda": [16, 32, 64, 128], "cpu": [32, 64]}
_QUICK_LENGTHS = {"cuda": [1024, 4096], "cpu": [256]}
_ORDER = ["flash", "tiled", "reference", "sdpa"]


def main() -> None:
    args = parse_arguments()
    make_json_folder(args.json)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        raise UserError(f"{torch.cuda.get_device_name()}: the kernels need a GPU of compute capability 8.0 or higher")
    lengths = (_QUICK_LENGTHS if args.quick else _LENGTHS)[device.type]
    d_heads = [64] if args.quick else _D_HEADS[device.type]
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    try:
        for case in (Case(*values) for values in product(DTYPES, lengths, d_heads)):
            measure_case(case, device, rows, problems)
            if args.json:
                write_json(args.json, rows)
    finally:  # also after Ctrl-C
        print(report(rows, problems, device))


def parse_arguments() -> argparse.Namespace:
    parser = make_parser("bench.attention", __doc__)
    add_json(parser)
    parser.add_argument("--quick", action="store_true", help="only heads of 64 dimensions, and one or two lengths")
    return parser.parse_args()


def measure_case(case: Case, device: torch.device, rows: list[dict[str, Any]], problems: list[Problem]) -> None:
    """Measure every system in a case, and add to `rows` and `problems`."""
    inputs = make_inputs(case, device)
    for of_pass in PASSES:
        expected = call(sdpa, of_pass, inputs)
        for system, attend in systems(device).items():
            row = {"task": "attention", **asdict(case), "pass": of_pass, "system": system}
            try:
                row |= measure(attend, of_pass, inputs, expected)
            except (NotMeasured, torch.OutOfMemoryError) as error:
                reason = str(error) if isinstance(error, NotMeasured) else "does not fit into the memory of the GPU"
                where = f"{case.dtype}, sequence_length {case.sequence_length}, d_head {case.d_head}, {of_pass}"
                problems.append(Problem(system, reason, where))
                print(f"{system}: {reason} ({where})", file=sys.stderr)
                continue
            rows.append(row)
            print(*(f"{value:.3g}" if isinstance(value, float) else value for value in row.values()), file=sys.stderr)


def report(rows: list[dict[str, Any]], problems: list[Problem], device: torch.device) -> str:
    """Return the Markdown: a table per dtype and pass, one for memory, and what was not measured."""
    keys = ("sequence_length", "d_head")
    lines = [f"{machine(device)}. {versions(['torch'])}."]
    for dtype, of_pass in product(DTYPES, PASSES):
        of_table = [row for row in rows if (row["dtype"], row["pass"]) == (dtype, of_pass)]
        if of_table:
            kernel = f"; sdpa is {SDPA_KERNELS[DTYPES[dtype]].name}" if device.type == "cuda" else ""
            lines += ["", f"### {dtype}, {of_pass}: ms (TFLOP/s){kernel}", "", *table(of_table, keys, _ORDER, _time)]
    of_memory = [row for row in rows if row["pass"] == PASSES[1] and row["peak_mb"] is not None]
    for dtype in dict.fromkeys(row["dtype"] for row in of_memory):
        of_table = [row for row in of_memory if row["dtype"] == dtype]
        lines += ["", f"### {dtype}, {PASSES[1]}: peak MB", "", *table(of_table, keys, _ORDER, _peak)]
    return "\n".join(lines + not_measured(problems))


def _time(row: dict[str, Any]) -> str:
    return f"{row['milliseconds']:.3g} ({row['tflops']:.3g})"


def _peak(row: dict[str, Any]) -> str:
    return f"{row['peak_mb']:.0f}"


if __name__ == "__main__":
    exit_cleanly(main)
