"""One measurement of speed in a fresh process: `python -m bench.training.measure JOB` reads and prints a JSON object.

Not timed: imports, a step of a tiny model, during which the library loads what it needs, building the model, the first
step with its compilation, and three more steps. Then steps are timed one by one for some seconds. On a GPU they are
timed in groups, so that the next step can be prepared while one is running.

`peak_mb` is the largest memory during the timed steps: on the CPU resident memory, minus what the process held after
imports and the tiny model; on a GPU the memory allocated by PyTorch.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from bench.common.memory import peak, reset_peak
from bench.common.models import SAME_FUNCTION, SYSTEMS, Lm
from bench.training.step import make_step
from lm.device import keep_freed_memory, why_not_compile
from lm.model.config import ModelConfig
from lm.training.batches import batch, window_starts
from lm.training.config import OptimConfig

_WARM_UP_STEPS = 3
_MIN_TIMINGS = 5
_STEPS_PER_TIMING = {"cpu": 1, "cuda": 5}
_NUM_BATCHES = 8  # different ones, prepared before the timing

_MATMUL_SIZE = {"cpu": 3072, "cuda": 8192}
_MATMUL_SECONDS = 2.0


def main() -> None:
    job = json.loads(sys.argv[1])
    print(json.dumps(matmul_speed(job) if job["task"] == "matmul" else training_speed(job)))


def training_speed(job: dict[str, Any]) -> dict[str, Any]:
    """Time the training steps of a `system` for at least `seconds`.

    The job also has `model`, `vocab_size`, `optim`, `attention`, `dtype`, `compile`, `batch_size`, `allocator`,
    `device`, `checkout`, and `tokens`, the path of an array of token ids.

    Raises:
        RuntimeError: torch.compile does not work on this machine.
    """
    device, dtype = torch.device(job["device"]), job["dtype"]
    if job["allocator"] == "tuned":
        keep_freed_memory()
    if job["compile"] and (reason := why_not_compile(device)):
        raise RuntimeError(f"torch.compile does not work here: {reason}")
    config, optim = ModelConfig(**job["model"]), OptimConfig(**job["optim"])
    System = SYSTEMS[job["system"]]
    checkout = Path(job["checkout"]) if job["checkout"] else None
    tokens = np.load(job["tokens"])
    tokens = np.resize(tokens, (_NUM_BATCHES * job["batch_size"] + 1) * config.context_length)
    starts = window_starts(tokens, "stream", config.context_length, end_of_text_id=0)
    batches = []
    for number in range(_NUM_BATCHES):
        inputs, targets = batch(tokens, starts, number, job["batch_size"], config.context_length, seed=1)
        batches.append((inputs.contiguous(), targets.contiguous()))

    tiny = ModelConfig(**job["model"] | {"d_model": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "d_ff": 64})
    tiny_system = System(tiny, job["vocab_size"], job["attention"], checkout)
    inputs, targets = batches[0]
    make_step(tiny_system, optim, dtype, device, compiled=False)(inputs[:1], targets[:1], optim.max_learning_rate)
    del tiny_system
    before = reset_peak(device)

    system = System(config, job["vocab_size"], job["attention"], checkout)
    if job["system"] in SAME_FUNCTION:
        system.load_weights(Lm(config, job["vocab_size"]).model)
    parameters = sum(p.numel() for p in system.model.parameters())
    step = make_step(system, optim, dtype, device, compiled=job["compile"])
    start = time.perf_counter()
    first_loss = float(step(*batches[0], optim.max_learning_rate))
    first_seconds = time.perf_counter() - start
    for number in range(_WARM_UP_STEPS):
        step(*batches[number % _NUM_BATCHES], optim.max_learning_rate)
    _synchronize(device)
    reset_peak(device)
    timings: list[float] = []
    number, group = 0, _STEPS_PER_TIMING[device.type]
    while len(timings) < _MIN_TIMINGS or sum(timings) * group < job["seconds"]:
        start = time.perf_counter()
        for _ in range(group):
            step(*batches[number % _NUM_BATCHES], optim.max_learning_rate)
            number += 1
        _synchronize(device)
        timings.append((time.perf_counter() - start) / group)
    return {
        "seconds_per_step": median(timings),
        "steps": number,
        "first_loss": first_loss,
        "first_step_seconds": first_seconds,
        "parameters": parameters,
        "peak_mb": (peak(device) - before) / 1e6,
    }


def matmul_speed(job: dict[str, Any]) -> dict[str, float]:
    """Return the highest FLOP/s of a large matrix multiplication, which a training step cannot exceed."""
    device = torch.device(job["device"])
    size = _MATMUL_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device).to(getattr(torch, job["dtype"])) for _ in range(2))
    best, spent = float("inf"), 0.0
    while spent < _MATMUL_SECONDS:
        _synchronize(device)
        start = time.perf_counter()
        torch.matmul(left, right)
        _synchronize(device)
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds), spent + seconds
    return {"flops_per_second": 2 * size**3 / best}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
