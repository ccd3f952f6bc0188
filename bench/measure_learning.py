"""One training in a process of its own: `python bench/measure_learning.py JOB` prints a JSON object, its curve.

The clock runs while steps are taken, their batches made; not during evaluations, nor while the first step compiles: it
counts as the median of the others. Every evaluation takes the whole val split, each token as a target once
(lm.training.evaluation), by the system's own model.
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
from learners import LEARNERS, Lm, Step, make_step
from torch import Tensor

from lm.device import keep_freed_memory
from lm.model.config import ModelConfig
from lm.training.batches import batch
from lm.training.config import OptimConfig
from lm.training.evaluation import windows
from lm.training.optimizer import make_optimizer
from lm.training.schedule import learning_rate
from lm.training.train_step import TrainStep, document_starts

_EVALUATION_BATCH_SIZE = 32


def main() -> None:
    print(json.dumps(learn(json.loads(sys.argv[1]))))


def learn(job: dict[str, Any]) -> dict[str, Any]:
    """Train a `system` for `steps` and evaluate it `points` times.

    The job also holds `model`, `vocab_size`, `optim`, `dtype`, `compile`, `batch_size`, `attention`, `source`; `tokens`
    and `val_tokens`, paths of arrays of ids, `val_text_bytes` and `end_of_text_id`; and of ours
    `document_mask`.
    """
    keep_freed_memory()  # for all: what is compared here is how they learn
    config, optim = ModelConfig(**job["model"]), OptimConfig(**job["optim"])
    tokens, val_tokens = np.load(job["tokens"]), np.load(job["val_tokens"])
    source = Path(job["source"]) if job["source"] else None
    torch.manual_seed(1)
    system = LEARNERS[job["system"]](config, job["vocab_size"], job["attention"], source)
    model = system.model  # not the compiled one, for evaluations: their last windows have another length
    step = _our_step(job, system, optim) if isinstance(system, Lm) else _their_step(job, system, optim)
    evaluate_at = {round(job["steps"] * (point + 1) / job["points"]) for point in range(job["points"])}
    curve, spent = [], []
    for number in range(1, job["steps"] + 1):
        start = time.perf_counter()
        inputs, targets = batch(tokens, number - 1, job["batch_size"], config.context_length, seed=1)
        step(inputs.contiguous(), targets.contiguous(), learning_rate(number, optim, job["steps"]))
        spent.append(time.perf_counter() - start)
        if number in evaluate_at:
            compiled, system.model = system.model, model
            nats = _evaluate(job, system, val_tokens, config.context_length)
            system.model = compiled
            bits_per_byte = nats / math.log(2) / job["val_text_bytes"]
            seconds = sum(spent[1:]) + median(spent[1:] or spent)
            curve.append({"step": number, "seconds": seconds, "val_bits_per_byte": bits_per_byte})
    return {
        "curve": curve,
        "first_step_seconds": spent[0],
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _our_step(job: dict[str, Any], system: Lm, optim: OptimConfig) -> Step:
    update = TrainStep(
        system.model,
        make_optimizer(system.model, optim),
        precision=job["dtype"],
        max_grad_norm=optim.max_grad_norm,
        document_separator=job["end_of_text_id"] if job["document_mask"] else None,
        compile=job["compile"],
    )
    return lambda inputs, targets, rate: update(inputs, targets, rate)[0]


def _their_step(job: dict[str, Any], system: Any, optim: OptimConfig) -> Step:
    return make_step(system, optim, job["dtype"], torch.device("cpu"), job["compile"])


@torch.no_grad()
def _evaluate(job: dict[str, Any], system: Any, tokens: np.ndarray, length: int) -> float:
    """The sum of nats over all tokens."""
    system.model.eval()
    nats = 0.0
    for inputs, targets in windows(tokens, job["end_of_text_id"], length, _EVALUATION_BATCH_SIZE):
        nats += _loss(job, system, inputs.contiguous(), targets.contiguous()) * targets.numel()
    system.model.train()
    return nats


def _loss(job: dict[str, Any], system: Any, inputs: Tensor, targets: Tensor) -> float:
    if isinstance(system, Lm) and job["document_mask"]:
        logits = system.model(inputs, document_starts=document_starts(inputs, job["end_of_text_id"]))
        return torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten()).item()
    return system.loss(inputs, targets).item()


if __name__ == "__main__":
    main()
