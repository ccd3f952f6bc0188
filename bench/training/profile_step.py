"""Where the time and the memory of one of our training steps go.

    python -m bench.training.profile_step [--shape 125m] [--batch-size 16] [--attention flash] [--no-compile]

The times are those of the device's kernels as measured by PyTorch's profiler, grouped into families by their names; on
a CPU they are the operators' own times. The attention kernels are listed by name, to show which of them ran. The memory
is the peak of a step without the profiler: on a GPU the memory allocated by PyTorch, next to the prediction of
lm.planning.memory_estimate.
"""

import argparse
import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from bench.common.arguments import add_json, check_positive, make_json_folder, make_parser
from bench.common.models import Lm
from bench.common.shapes import OPTIM, SHAPES
from bench.common.tables import machine
from bench.common.tokens import write_tokens
from bench.training.step import make_step
from lm.atomic import write_json
from lm.device import keep_freed_memory, pick_device, why_not_compile
from lm.errors import UserError, exit_cleanly
from lm.model.cost import training_flops_per_token
from lm.planning.memory_estimate import training_bytes
from lm.training.batches import batch, window_starts

# The first pattern that matches a kernel's name determines its family. The names are those of cuBLAS and PyTorch, and
# those that PyTorch gives to Triton kernels.
FAMILIES = {
    "attention": r"flash|fmha|sdpa|attention",
    "matrix multiplication": r"gemm|cutlass|nvjet|cublas|xmma|aten::(mm|addmm|bmm)|mkldnn.*linear|triton_tem",
    "optimizer and clipping": r"adam|lerp|multi_tensor|foreach|_norm\b|lpnorm|addcdiv|addcmul",
    "copies": r"memcpy|memset|copy_|_to_copy|aten::(fill|zero)",
    "embeddings and indexing": r"index|gather|scatter|embedding",
    "reductions": r"triton_(red|per)|reduce|softmax|aten::(sum|mean|amax|logsumexp)",
    "element-wise": r"triton_poi|elementwise|vectorized|cpp_fused|aten::(mul|add|sub|div|exp|sigmoid|silu|where)",
}
_OTHER = "other"

_WARM_UP_STEPS = 5
_STEPS = 5


def main() -> None:
    args = parse_arguments()
    device = pick_device(args.device)
    if not args.no_compile and (reason := why_not_compile(device)):
        raise UserError(f"torch.compile does not work here: {reason}; use --no-compile")
    make_json_folder(args.json)
    keep_freed_memory()
    result = measure(args, device)
    print(report(args, device, result))
    if args.json:
        write_json(args.json, result)


def parse_arguments() -> argparse.Namespace:
    parser = make_parser("bench.training.profile_step", __doc__)
    parser.add_argument("--shape", choices=SHAPES, default="125m", help=f"{', '.join(SHAPES)}; default: 125m")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="sequences; default: 16")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="default: bfloat16")
    parser.add_argument(
        "--attention", choices=["reference", "sdpa", "flash", "auto"], default="auto", help="default: auto"
    )
    parser.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    add_json(parser)
    args = parser.parse_args()
    check_positive("--batch-size", [args.batch_size])
    return args


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Return the milliseconds of a step by kernel and by family, and its bytes as predicted and as measured."""
    shape = SHAPES[args.shape]
    with TemporaryDirectory() as folder:
        tokens = np.load(write_tokens(Path(folder)))
    starts = window_starts(tokens, "stream", shape.context_length, end_of_text_id=0)
    inputs, targets = batch(tokens, starts, 0, args.batch_size, shape.context_length, seed=1)
    system = Lm(shape.model, shape.vocab_size, args.attention)
    step = make_step(system, OPTIM, args.dtype, device, compiled=not args.no_compile)
    for _ in range(_WARM_UP_STEPS):
        step(inputs, targets, OPTIM.max_learning_rate)
    peak = None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step(inputs, targets, OPTIM.max_learning_rate)
        peak = torch.cuda.max_memory_allocated()
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        for _ in range(_STEPS):
            step(inputs, targets, OPTIM.max_learning_rate)
    kernels: Counter[str] = Counter()
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        kernels[event.key] += microseconds / 1e3 / _STEPS
    families: Counter[str] = Counter()
    for name, milliseconds in kernels.items():
        families[family(name)] += milliseconds
    return {
        "milliseconds": dict(families.most_common()),
        "kernels": {name: milliseconds for name, milliseconds in kernels.most_common(40) if milliseconds},
        "attention_kernels": [name for name in kernels if family(name) == "attention" and kernels[name]],
        "predicted_bytes": training_bytes(
            shape.model,
            shape.vocab_size,
            args.batch_size,
            args.dtype,
            attention_backend=args.attention,
            device=device.type,
        ),
        "peak_bytes": peak,
        "flops": args.batch_size * shape.context_length * training_flops_per_token(shape.model, shape.vocab_size),
    }


def family(kernel: str) -> str:
    """Return the family of a kernel.

    Example: `ampere_bf16_s16816gemm_bf16_128x256` belongs to matrix multiplication.
    """
    return next((name for name, pattern in FAMILIES.items() if re.search(pattern, kernel, re.IGNORECASE)), _OTHER)


def report(args: argparse.Namespace, device: torch.device, result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    total = sum(result["milliseconds"].values())
    longest = list(result["kernels"].items())[:12]
    lines = [
        f"{machine(device)}, torch {torch.__version__}.",
        f"A step: {args.shape}, {args.dtype}, batch size {args.batch_size}, attention {args.attention}, "
        f"{'eager' if args.no_compile else 'compiled'}; {total:.1f} ms in kernels, {result['flops'] / 1e9:,.0f} GFLOP.",
        "",
        "| kernels | ms per step | share |",
        "| --- | --- | --- |",
        *(f"| {name} | {spent:.2f} | {spent / total:.0%} |" for name, spent in result["milliseconds"].items()),
        "",
        f"Attention kernels: {', '.join(result['attention_kernels']) or 'none of its own'}.",
        "",
        "The longest kernels:",
        "",
        *(f"- {spent:.2f} ms {name[:120]}" for name, spent in longest),
        "",
    ]
    predicted = sum(result["predicted_bytes"].values())
    parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in result["predicted_bytes"].items())
    lines.append(f"Predicted peak memory: {predicted / 1e6:,.0f} MB ({parts}).")
    if measured := result["peak_bytes"]:
        lines.append(f"Measured: {measured / 1e6:,.0f} MB, {measured / predicted:.2f} times the prediction.")
    return "\n".join(lines)


if __name__ == "__main__":
    exit_cleanly(main)
