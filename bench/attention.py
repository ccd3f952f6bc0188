"""Time causal attention: this project's FlashAttention-2 beside PyTorch's kernels and the plain equation.

    python bench/attention.py [--quick] [--json FILE]

The systems: `flash` is the Triton kernels (on a GPU only), `tiled` the same algorithm in PyTorch, `reference` the
scores as one matrix, `sdpa` PyTorch's scaled_dot_product_attention. On a GPU that is held to its FlashAttention kernel
in bfloat16, and in float32, which this kernel does not take, to the memory-efficient one.

A figure is for the forward pass, or for forward and backward together, of 16,384 tokens (on a CPU 2,048), or one longer
sequence, with heads of 2,048 in sum (on a CPU 256). Its milliseconds are the median of calls after a warm-up, on a GPU
between CUDA's events. Its FLOPs are those of the half of the scores that is not masked, and of the backward pass 2.5
times those of the forward pass, as in the paper. Its megabytes (10**6 bytes) are the peak that PyTorch allocates on a
GPU, the inputs apart. What is timed is first compared with sdpa: `max_error` is the largest difference in a tensor,
output or gradient, as a part of the largest of sdpa's values in it.

Each figure is shown on stderr as soon as it is there, and the file of --json holds all that there are so far.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lm.atomic import make_folder, write_json
from lm.errors import UserError, exit_cleanly
from lm.model.attention import causal_attention
from lm.model.fused.flash_attention import flash_attention, tiled_backward, tiled_forward

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

PASSES = ["forward", "forward and backward"]

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_TOLERANCES = {torch.bfloat16: 2**-5, torch.float32: 1e-4}  # bfloat16 has 8 bits, and both sides round more than once
_SDPA = {torch.bfloat16: SDPBackend.FLASH_ATTENTION, torch.float32: SDPBackend.EFFICIENT_ATTENTION}

_LENGTHS = {"cuda": [128, 256, 512, 1024, 2048, 4096, 16384, 65536], "cpu": [128, 256, 512, 1024]}
_D_HEADS = {"cuda": [16, 32, 64, 128], "cpu": [32, 64]}
_QUICK_LENGTHS = {"cuda": [1024, 4096], "cpu": [256]}
_TOKENS = {"cuda": 16_384, "cpu": 2_048}
_WIDTH = {"cuda": 2_048, "cpu": 256}
_LONGEST_TILED = 4_096  # on a GPU its time is that of the calls, whose number is quadratic

_MIN_CALLS, _SECONDS = 3, 0.2  # of the calls that are timed, whichever takes longer


@dataclass(frozen=True)
class Cell:
    """What the systems are compared on: a row of a table."""

    dtype: str
    sequence_length: int
    d_head: int


class NotMeasured(Exception):
    """Why a system has no figure, in a few words."""


class TiledAttention(torch.autograd.Function):
    """The tiles of PyTorch, also where flash_attention would take the kernels."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o, log_sum_exp = tiled_forward(q, k, v, None)
        ctx.save_for_backward(q, k, v, o, log_sum_exp)
        return o

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tiled_backward(gradient, *ctx.saved_tensors, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there, a row for each")
    parser.add_argument("--quick", action="store_true", help="heads of 64 and one length or two")
    args = parser.parse_args()
    if args.json:
        make_folder(args.json.parent)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        raise UserError(f"{torch.cuda.get_device_name()}: the kernels need a GPU of compute capability 8.0 or more")
    lengths = (_QUICK_LENGTHS if args.quick else _LENGTHS)[device.type]
    d_heads = [64] if args.quick else _D_HEADS[device.type]
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    try:
        for cell in (Cell(*values) for values in product(_DTYPES, lengths, d_heads)):
            measure_cell(cell, device, rows, problems)
            if args.json:
                write_json(args.json, rows)
    finally:  # also of what there is when it is interrupted
        print(report(rows, problems, device))


def measure_cell(cell: Cell, device: torch.device, rows: list[dict[str, Any]], problems: list[str]) -> None:
    """Append a row for each figure, and a line for each that could not be had."""
    inputs = make_inputs(cell, device)
    for of_pass in PASSES:
        expected = call(_sdpa, of_pass, inputs)
        for system, attend in systems(device).items():
            row = {"task": "attention", **asdict(cell), "pass": of_pass, "system": system}
            try:
                row |= measure(attend, of_pass, inputs, expected)
            except (NotMeasured, torch.OutOfMemoryError) as error:
                reason = str(error) if isinstance(error, NotMeasured) else "does not fit into the GPU's memory"
                row_of = f"{cell.dtype}, sequence_length {cell.sequence_length}, d_head {cell.d_head}, {of_pass}"
                problems.append(f"{system} ({row_of}): {reason}")
                print(problems[-1], file=sys.stderr)
                continue
            rows.append(row)
            print(*(f"{value:.3g}" if isinstance(value, float) else value for value in row.values()), file=sys.stderr)


def make_inputs(cell: Cell, device: torch.device) -> list[Tensor]:
    """q, k, v and the output's gradient, (B, H, T, K), as the model has them: (B, T, H, K) in memory."""
    torch.manual_seed(0)
    batch = max(1, _TOKENS[device.type] // cell.sequence_length)
    shape = batch, cell.sequence_length, _WIDTH[device.type] // cell.d_head, cell.d_head
    tensors = [torch.randn(shape, device=device, dtype=_DTYPES[cell.dtype]) for _ in range(4)]
    return [tensor.transpose(1, 2).requires_grad_(i < 3) for i, tensor in enumerate(tensors)]


def systems(device: torch.device) -> dict[str, Attention]:
    flash: dict[str, Attention] = {"flash": flash_attention} if device.type == "cuda" else {}
    return flash | {"tiled": _tiled, "reference": _reference, "sdpa": _sdpa}


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if not q.is_cuda:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    with sdpa_kernel(_SDPA[q.dtype]):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _tiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.is_cuda and q.shape[-2] > _LONGEST_TILED:
        raise NotMeasured(f"not tried on sequences of over {_LONGEST_TILED:,}")
    return TiledAttention.apply(q, k, v)


def _reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return causal_attention(q, k, v, "reference")


def call(attend: Attention, of_pass: str, inputs: list[Tensor]) -> list[Tensor]:
    """The output and, if the backward pass is asked for, the three gradients."""
    q, k, v, gradient = inputs
    if of_pass == "forward":
        with torch.no_grad():
            return [attend(q, k, v)]
    o = attend(q, k, v)
    return [o.detach(), *torch.autograd.grad(o, (q, k, v), gradient)]


def measure(attend: Attention, of_pass: str, inputs: list[Tensor], expected: list[Tensor]) -> dict[str, float | None]:
    """The figures of a row.

    Raises:
        NotMeasured: what it returns is not what is expected.
    """
    q = inputs[0]
    max_error = largest_difference(call(attend, of_pass, inputs), expected)
    if not max_error <= _TOLERANCES[q.dtype]:
        raise NotMeasured(f"differs from sdpa by {max_error:.1e} of its largest value")
    run = partial(call, attend, of_pass, inputs)  # warm by now: compiled, and its memory reserved
    seconds = time_on_gpu(run) if q.is_cuda else time_on_cpu(run)
    return {
        "milliseconds": 1e3 * seconds,
        "tflops": flops(q, of_pass) / seconds / 1e12,
        "peak_mb": peak_bytes(run) / 1e6 if q.is_cuda else None,
        "max_error": max_error,
    }


def largest_difference(tensors: list[Tensor], expected: list[Tensor]) -> float:
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(tensors, expected, strict=True))


def flops(q: Tensor, of_pass: str) -> float:
    """Q Kᵀ and P V are 2 T² K each for a head, half of it masked; the backward pass has five such products."""
    batch, heads, length, d_head = q.shape
    forward = 4 * batch * heads * length**2 * d_head / 2
    return forward if of_pass == "forward" else 3.5 * forward


def time_on_gpu(run: Callable[[], Any]) -> float:
    """Seconds, the median between CUDA's events around each call."""
    times: list[float] = []
    while len(times) < _MIN_CALLS or sum(times) < _SECONDS:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times)


def time_on_cpu(run: Callable[[], Any]) -> float:
    times: list[float] = []
    while len(times) < _MIN_CALLS or sum(times) < _SECONDS:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


def peak_bytes(run: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def report(rows: list[dict[str, Any]], problems: list[str], device: torch.device) -> str:
    """Markdown: a table for each type and pass, one for memory, and what has no figure and why."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    lines = [f"{name}. PyTorch {torch.__version__}, Python {platform.python_version()}."]
    for dtype, of_pass in product(_DTYPES, PASSES):
        of_table = [row for row in rows if (row["dtype"], row["pass"]) == (dtype, of_pass)]
        if of_table:
            kernel = f"; sdpa is {_SDPA[_DTYPES[dtype]].name}" if on_gpu else ""
            lines += ["", f"### {dtype}, {of_pass}: ms (TFLOP/s){kernel}", ""]
            lines += table(of_table, lambda row: f"{row['milliseconds']:.3g} ({row['tflops']:.3g})")
    of_memory = [row for row in rows if row["pass"] == PASSES[1] and row["peak_mb"] is not None]
    for dtype in dict.fromkeys(row["dtype"] for row in of_memory):
        lines += ["", f"### {dtype}, {PASSES[1]}: peak MB", ""]
        lines += table([row for row in of_memory if row["dtype"] == dtype], lambda row: f"{row['peak_mb']:.0f}")
    if problems:
        lines += ["", "Not measured:", "", *(f"- {problem}" for problem in problems)]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]], show: Callable[[dict[str, Any]], str]) -> list[str]:
    """The lines of a table with a column for each system."""
    names = list(dict.fromkeys(row["system"] for row in rows))
    cells: dict[tuple[int, int], dict[str, str]] = {}
    for row in rows:
        cells.setdefault((row["sequence_length"], row["d_head"]), {})[row["system"]] = show(row)
    lines = [["sequence_length", "d_head", *names], ["---"] * (2 + len(names))]
    lines += [[*map(str, cell), *(of.get(name, "-") for name in names)] for cell, of in cells.items()]
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    exit_cleanly(main)
