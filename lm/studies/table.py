"""The ablation table: the loss of each variant, and its difference from the baseline."""

import math
from typing import NotRequired

import pandas as pd
from typing_extensions import TypedDict


class CellMetrics(TypedDict):
    """What the table needs of the metrics of a run; `val_loss` is missing if it is not finite."""

    num_parameters: int
    diverged: int
    val_loss: NotRequired[float]


def table(metrics: dict[str, list[CellMetrics]]) -> pd.DataFrame:
    """One row per variant, in the order of `metrics`, which holds the metrics of each variant's runs.

    The first variant is the baseline, from which `difference` is measured. `val_loss_std` is the sample standard
    deviation over the seeds (divided by n - 1), and empty for a single seed. `diverged` is the number of runs that
    diverged; such a run counts with the loss of the model that it kept.
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
    """The table in GitHub's Markdown."""
    lines = [
        "| variant | val loss | ± | difference | parameters | diverged |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in frame.to_dict("records"):
        mean, std = _number(row["val_loss_mean"], ".4f"), _number(row["val_loss_std"], ".4f")
        diverged = f"{row['diverged']} of {row['runs']}" if row["diverged"] else "no"
        difference = _number(row["difference"], "+.4f")
        lines.append(f"| {row['variant']} | {mean} | {std} | {difference} | {row['num_parameters']:,} | {diverged} |")
    return "\n".join(lines) + "\n"


def _number(value: float, style: str) -> str:
    return "" if math.isnan(value) else format(value, style)
