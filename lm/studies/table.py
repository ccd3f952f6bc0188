"""The ablation table: what each variant costs or gains against the baseline."""

import math
from typing import Any

import pandas as pd


def table(metrics: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """A row a variant out of its cells' metrics, in the order given; the first variant is the baseline.

    `val_loss_std` is the standard deviation over the seeds (n - 1), empty for a single one; a variant has `diverged` as
    "k of n" when some of its runs did, and its mean is then over the models that these runs kept.
    """
    rows = []
    for variant, runs in metrics.items():
        losses = pd.Series([run.get("val_loss", math.nan) for run in runs], dtype=float)
        rows.append(
            {
                "variant": variant,
                "val_loss_mean": losses.mean(skipna=False),
                "val_loss_std": losses.std(),
                "num_parameters": runs[0]["num_parameters"],
                "diverged": sum(run["diverged"] for run in runs),
                "runs": len(runs),
            }
        )
    frame = pd.DataFrame(rows)
    frame.insert(3, "difference", frame["val_loss_mean"] - frame["val_loss_mean"].iloc[0])
    return frame


def markdown(frame: pd.DataFrame) -> str:
    """The table as GitHub shows it."""
    lines = [
        "| variant | val loss | ± | difference | parameters | diverged |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in frame.itertuples():
        mean, std = _number(row.val_loss_mean, ".4f"), _number(row.val_loss_std, ".4f")
        diverged = f"{row.diverged} of {row.runs}" if row.diverged else "no"
        difference = _number(row.difference, "+.4f")
        lines.append(f"| {row.variant} | {mean} | {std} | {difference} | {row.num_parameters:,} | {diverged} |")
    return "\n".join(lines) + "\n"


def _number(value: float, style: str) -> str:
    return "" if math.isnan(value) else format(value, style)
