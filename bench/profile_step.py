"""Where the time and the memory of one training step of ours go.

    python bench/profile_step.py [--shape 125m] [--batch-size 16] [--attention flash] [--no-compile] [--device cuda]

The time is that of the device's kernels, as PyTorch's profiler sees them, by families that their names tell apart: on a
CPU the operators' own time. The kernels of attention are listed by name, to show which of them ran. The memory is the
peak of a step without the profiler: on a GPU what PyTorch's allocator holds, beside what lm.model.cost predicts.
"""

import argparse
import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from comparison import machine
from learners import Lm, make_step
from shapes import OPTIM, SHAPES, write_tokens
from torch.profiler import ProfilerActivity, profile

from lm.atomic import make_folder, write_json
from lm.device import keep_freed_memory, pick_device, why_not_compile
from lm.errors import UserError, exit_cleanly
from lm.model.cost import training_bytes, training_flops_per_token
from lm.training.batches import batch

# The first pattern that a kernel's name fits says its family: cuBLAS's names, PyTorch's, and those it gives Triton's.
FAMILIES = {
    "attention": r"flash|fmha|sdpa|attention",
    "matrix products": r"gemm|cutlass|nvjet|cublas|xmma|aten::(mm|addmm|bmm)|mkldnn.*linear|triton_tem",
    "optimizer and clipping": r"adam|lerp|multi_tensor|foreach|_norm\b|lpnorm|addcdiv|addcmul",
    "copies": r"memcpy|memset|copy_|_to_copy|aten::(fill|zero)",
    "embeddings and indices": r"index|gather|scatter|embedding",
    "reductions": r"triton_(red|per)|reduce|softmax|aten::(sum|mean|amax|logsumexp)",
    "element by element": r"triton_poi|elementwise|vectorized|cpp_fused|aten::(mul|add|sub|div|exp|sigmoid|silu|where)",
}
_OTHER = "other"

_WARM_UP_STEPS = 5
_STEPS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="125m", help=f"{', '.join(SHAPES)}; default: 125m")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="sequences; default: 16")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="default: bfloat16")
    parser.add_argument("--attention", choices=["reference", "sdpa", "flash"], default="sdpa", help="default: sdpa")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    args = parser.parse_args()
    if args.batch_size < 1:
        raise UserError(f"--batch-size: expected 1 or more, got {args.batch_size}")
    device = pick_device(args.device)
    if not args.no_compile and (reason := why_not_compile(device)):
        raise UserError(f"torch.compile does not work here: {reason}; use --no-compile")
    if args.json:
        make_folder(args.json.parent)
    keep_freed_memory()
    facts = measure(args, device)
    print(report(args, device, facts))
    if args.json:
        write_json(args.json, facts)


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Milliseconds of a step by kernel and by family, and bytes as predicted and as measured."""
    shape = SHAPES[args.shape]
    with TemporaryDirectory() as folder:
        tokens = np.load(write_tokens(Path(folder)))
    inputs, targets = batch(tokens, 0, args.batch_size, shape.context_length, seed=1)
    step = make_step(
        Lm(shape.model, shape.vocab_size, args.attention, None), OPTIM, args.dtype, device, not args.no_compile
    )
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
    """The family of a kernel, by its name.

    Example: `ampere_bf16_s16816gemm_bf16_128x256` is of the matrix products.
    """
    return next((name for name, pattern in FAMILIES.items() if re.search(pattern, kernel, re.IGNORECASE)), _OTHER)


def report(args: argparse.Namespace, device: torch.device, facts: dict[str, Any]) -> str:
    named = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    total = sum(facts["milliseconds"].values())
    lines = [
        f"{machine()}, {named}, torch {torch.__version__}.",
        f"A step: {args.shape}, {args.dtype}, batch size {args.batch_size}, attention {args.attention}, "
        f"{'eager' if args.no_compile else 'compiled'}; {total:.1f} ms in kernels, {facts['flops'] / 1e9:,.0f} GFLOP.",
        "",
        "| kernels | ms a step | share |",
        "| --- | --- | --- |",
        *(f"| {name} | {spent:.2f} | {spent / total:.0%} |" for name, spent in facts["milliseconds"].items()),
        "",
        f"Attention ran as: {', '.join(facts['attention_kernels']) or 'no kernel of its own'}.",
        "",
        "The longest:",
        "",
        *(f"- {spent:.2f} ms {name[:120]}" for name, spent in list(facts["kernels"].items())[:12]),
        "",
    ]
    predicted = sum(facts["predicted_bytes"].values())
    parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in facts["predicted_bytes"].items())
    lines.append(f"Peak memory predicted: {predicted / 1e6:,.0f} MB ({parts}).")
    if facts["peak_bytes"]:
        lines.append(f"Measured: {facts['peak_bytes'] / 1e6:,.0f} MB, {facts['peak_bytes'] / predicted:.2f} times it.")
    return "\n".join(lines)


if __name__ == "__main__":
    exit_cleanly(main)
