"""Ablations: one switch of the model changed at a time, everything else equal, over several seeds.

A cell is one variant with one seed; the table compares their final val losses.
"""

import dataclasses
import math
from typing import Any

import pandas as pd

from lm.config import Params
from lm.training.loop import Run


def cell(params: Params, variant: str, seed: int) -> Run:
    """The run of one cell: the sizes of `model`, the variant's switches, the seed, and the shorter training."""
    switches = dataclasses.asdict(params.ablate.variants[variant])
    scale = switches.pop("learning_rate_scale")
    optim = dataclasses.replace(
        params.optim,
        max_learning_rate=params.optim.max_learning_rate * scale,
        min_learning_rate=params.optim.min_learning_rate * scale,
    )
    train = dataclasses.replace(
        params.train,
        seed=seed,
        max_steps=params.ablate.max_steps,
        batch_size=params.ablate.batch_size,
        eval_every=params.ablate.eval_every,
    )
    return Run(model=dataclasses.replace(params.model, **switches), optim=optim, train=train)


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
        std = "" if math.isnan(row.val_loss_std) else f"{row.val_loss_std:.4f}"
        diverged = f"{row.diverged} of {row.runs}" if row.diverged else "no"
        lines.append(
            f"| {row.variant} | {row.val_loss_mean:.4f} | {std} | {row.difference:+.4f} | {row.num_parameters:,} | {diverged} |"
        )
    return "\n".join(lines) + "\n"
