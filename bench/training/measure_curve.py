"""One training in a fresh process: `python -m bench.training.measure_curve JOB` prints its curve as a JSON object.

The clock runs during the steps, including the preparation of their batches. It does not run during evaluations, and the
first step with windows of a length, which compiles, counts as the median of the others. Each evaluation is over the
whole val split, with every token as a target once (`lm.training.evaluation`), and uses the system's own loss.
"""

import json
import math
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.common.models import SYSTEMS
from bench.training.step import make_step
from lm.device import keep_freed_memory
from lm.model.config import ModelConfig
from lm.training.batches import batch, document_starts, window_starts
from lm.training.config import OptimConfig
from lm.training.evaluation import windows
from lm.training.schedule import learning_rate

_EVALUATION_BATCH_SIZE = 32


def main() -> None:
    print(json.dumps(learning_curve(json.loads(sys.argv[1]))))


def learning_curve(job: dict[str, Any]) -> dict[str, Any]:
    """Train a `system` for `steps` and evaluate it `points` times.

    The job also has `model`, `vocab_size`, `optim`, `dtype`, `compile`, `batch_size`, `attention` and `checkout`;
    `tokens` and `val_tokens`, the paths of arrays of token ids; `val_text_bytes` and `end_of_text_id`; and what
    `TrainConfig` has to choose windows: `windows`, `short_fraction`, `short_context_length` and `document_mask`.
    """
    keep_freed_memory()  # for all systems: this compares how they learn
    config, optim = ModelConfig(**job["model"]), OptimConfig(**job["optim"])
    tokens, val_tokens = np.load(job["tokens"]), np.load(job["val_tokens"])
    checkout = Path(job["checkout"]) if job["checkout"] else None
    torch.manual_seed(1)
    system = SYSTEMS[job["system"]](config, job["vocab_size"], job["attention"], checkout)
    model = system.model
    separator = job["end_of_text_id"] if job.get("document_mask") else None
    step = make_step(
        system, optim, job["dtype"], torch.device("cpu"), compiled=job["compile"], document_separator=separator
    )
    evaluate_at = {round(job["steps"] * (point + 1) / job["points"]) for point in range(job["points"])}
    starts = window_starts(tokens, job["windows"], config.context_length, job["end_of_text_id"])
    short_steps = round(job["short_fraction"] * job["steps"])
    num_short = config.context_length // job["short_context_length"]  # windows in place of one
    curve: list[dict[str, float]] = []
    spent: list[float] = []
    for number in range(1, job["steps"] + 1):
        start = time.perf_counter()
        if number <= short_steps:  # as in lm.training.loop
            size, length, index = num_short * job["batch_size"], job["short_context_length"], number - 1
        else:
            size, length = job["batch_size"], config.context_length
            index = number - 1 + short_steps * (num_short - 1)
        inputs, targets = batch(tokens, starts, index, size, length, seed=1)
        step(inputs.contiguous(), targets.contiguous(), learning_rate(number, optim, job["steps"]))
        spent.append(time.perf_counter() - start)
        if number in evaluate_at:
            # Not the compiled model: the last windows are shorter, so it would be compiled again.
            compiled, system.model = system.model, model
            nats = _total_loss(job, system, val_tokens, config.context_length, separator)
            system.model = compiled
            bits_per_byte = nats / math.log(2) / job["val_text_bytes"]
            compiling = {0, short_steps} & set(range(number))
            others = [seconds for index, seconds in enumerate(spent) if index not in compiling]
            seconds = sum(others) + len(compiling) * median(others or spent)
            curve.append({"step": number, "seconds": seconds, "val_bits_per_byte": bits_per_byte})
    return {
        "curve": curve,
        "first_step_seconds": spent[0],
        "parameters": sum(p.numel() for p in model.parameters()),
    }


@torch.no_grad()
def _total_loss(job: dict[str, Any], system: Any, tokens: np.ndarray, length: int, separator: int | None) -> float:
    """Return the loss in nats, summed over all tokens."""
    system.model.eval()
    nats = 0.0
    for inputs, targets in windows(tokens, job["end_of_text_id"], length, _EVALUATION_BATCH_SIZE):
        nats += _loss(system, inputs.contiguous(), targets.contiguous(), separator) * targets.numel()
    system.model.train()
    return nats


def _loss(system: Any, inputs: Tensor, targets: Tensor, separator: int | None) -> float:
    if separator is None:
        return system.loss(inputs, targets).item()
    logits = system.model(inputs, document_starts=document_starts(inputs, separator))
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten()).item()


if __name__ == "__main__":
    main()
