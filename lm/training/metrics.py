"""The metrics of a training run, and the file of its loss curve."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from lm.atomic import write_text
from lm.model.cost import parameters
from lm.training.config import RunConfig
from lm.training.data import Data
from lm.training.evaluation import DOCUMENT_LOSSES
from lm.training.history import History, Progress
from lm.training.schedule import learning_rate


def evaluation_row(
    run: RunConfig,
    data: Data,
    progress: Progress,
    val_loss: float,
    document_losses: dict[str, float | None],
    grad_norm: float | None,
    continuation: str,
) -> dict[str, Any]:
    """The row that an evaluation adds to the loss curve; a value that is not known or not finite is None.

    The floor is the entropy of the val split. It is the same in every row, so that it can be plotted with the losses.
    """
    finite = math.isfinite(val_loss)
    losses = progress.losses
    entropy = data.val_entropy_bits
    return {
        "step": progress.step,
        "learning_rate": learning_rate(progress.step, run.optim, run.train.max_steps),
        "train_loss": sum(losses) / len(losses) if losses else None,
        "val_loss": val_loss if finite else None,
        "floor_nats": entropy * math.log(2) / len(data.val) if entropy is not None else None,
        "val_bits_per_byte": val_loss * len(data.val) / math.log(2) / data.val_text_bytes if finite else None,
        "floor_bits_per_byte": entropy / data.val_text_bytes if entropy is not None else None,
        **document_losses,
        "grad_norm": grad_norm if grad_norm is not None and math.isfinite(grad_norm) else None,
        # Escaped as in a JSON string, so that a row of the CSV stays one line whatever an untrained model generates. No
        # tag may remain, because DVC writes the rows into a script of its page.
        "continuation": json.dumps(continuation, ensure_ascii=False)[1:-1].replace("<", r"\u003c"),
    }


def run_metrics(
    run: RunConfig, data: Data, vocab_size: int, progress: Progress, diverged: bool = False
) -> dict[str, float]:
    """The metrics of a run at its last evaluation; what is not known or not finite is left out.

    `diverged` is 1 if the caller says so, or if the last loss is not finite or higher than the first.
    """
    first, last = progress.history[0], progress.history[-1]
    metrics = {
        "step": progress.step,
        "tokens": run.num_tokens(progress.step),
        "num_parameters": sum(parameters(run.model, vocab_size).values()),
        "diverged": int(diverged or last["val_loss"] is None or last["val_loss"] > first["val_loss"]),
        "skipped_steps": progress.skipped_steps,
        "train_loss": last["train_loss"],
        "val_loss": last["val_loss"],
        "val_bits_per_byte": last["val_bits_per_byte"],
        **{name: last[name] for name in DOCUMENT_LOSSES},
    }
    if last["val_loss"] is not None and last["val_loss"] < 700:  # exp of more overflows, and JSON has no infinity
        metrics["val_perplexity"] = math.exp(last["val_loss"])
    metrics["floor_bits_per_byte"] = last["floor_bits_per_byte"]
    return {name: value for name, value in metrics.items() if value is not None}


def write_curve(history: History, path: Path) -> None:
    """Write a CSV file with one row per evaluation, replacing the file atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())
