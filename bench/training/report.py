"""The Markdown of the comparison: tables per shape, and what was not measured."""

from typing import Any

import torch

from bench.common.tables import OURS, Problem, machine, not_measured, table, versions
from bench.training.comparison import COMPARED

_KEYS = ("dtype", "compile", "batch_size", "allocator")


def report(
    rows: list[dict[str, Any]], peak_flops: dict[str, float], device: torch.device, problems: list[Problem]
) -> str:
    """Return the Markdown of `rows`, which are those of `--json`."""
    peaks = ", ".join(f"{dtype} {flops / 1e9:,.0f} GFLOP/s" for dtype, flops in peak_flops.items())
    lines = [
        f"{machine(device)}.",
        f"Versions: {versions(['torch', 'transformers', 'litgpt'])}.",
        f"A large matrix multiplication: {peaks or 'not measured'}.",
        f"`{OURS}` tunes the allocator itself; its results under default and tuned are the same measurements.",
    ]
    for shape in dict.fromkeys(row["shape"] for row in rows):
        of_shape = [row for row in rows if row["shape"] == shape]
        lines += ["", f"### {shape}, tokens per second (MFU)", ""]
        lines += table(of_shape, _KEYS, COMPARED, _speed, "tokens_per_second")
        lines += ["", "Peak memory, MB:", "", *table(of_shape, _KEYS, COMPARED, _peak)]
        lines += ["", "Tokens per second by attention:", "", *table(of_shape, _KEYS, COMPARED, _by_attention)]
        parameters = {row["system"]: f"{row['system']} {row['parameters']:,}" for row in of_shape}
        losses = {row["system"]: f"{row['system']} {row['first_loss']:.4f}" for row in of_shape}
        lines += ["", f"Parameters: {', '.join(parameters.values())}.", f"First loss: {', '.join(losses.values())}."]
    return "\n".join(lines + not_measured(problems))


def _speed(row: dict[str, Any]) -> str:
    return f"{row['tokens_per_second']:,.0f} ({row['mfu']:.0%})"


def _peak(row: dict[str, Any]) -> str:
    return f"{row['peak_mb']:.0f}"


def _by_attention(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {speed:,}" for name, speed in row["tokens_per_second_by_attention"].items())
