"""One measurement of training in a process of its own: `python bench/measure_training.py JOB` prints a JSON object.

Not timed: imports, a step of a tiny model, which loads what the library needs, building the model, the first step with
its compilation, and three more. Then steps are timed one by one for some seconds, on a GPU in groups, so that the one
is under way while the next is prepared.

`peak_mb` is the most memory during the timed steps: on the CPU resident, above what the process held after imports and
the tiny model; on a GPU allocated.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from learners import LEARNERS, SAME_FUNCTION, Lm, make_step
from measure import reset_resident_peak, resident_peak

from lm.device import keep_freed_memory, why_not_compile
from lm.model.config import ModelConfig
from lm.training.batches import batch
from lm.training.config import OptimConfig

_WARM_UP_STEPS = 3
_LEAST_TIMINGS = 5
_STEPS_PER_TIMING = {"cpu": 1, "cuda": 5}
_BATCHES = 8  # different ones, made before the clock runs

_PRODUCT_SIZE = {"cpu": 3072, "cuda": 8192}
_PRODUCT_SECONDS = 2.0


def main() -> None:
    job = json.loads(sys.argv[1])
    print(json.dumps(product(job) if job["task"] == "product" else training(job)))


def training(job: dict[str, Any]) -> dict[str, Any]:
    """Train a `system` with some `attention` on the `model` and `vocab_size` of a shape, for `seconds` at least.

    The job also holds `optim`, `dtype`, `compile`, `batch_size`, `allocator`, `device`, `source`, and `tokens`, the
    path of an array of ids.
    """
    device, dtype = torch.device(job["device"]), job["dtype"]
    if job["allocator"] == "tuned":
        keep_freed_memory()
    if job["compile"] and (reason := why_not_compile(device)):
        raise RuntimeError(f"torch.compile does not work here: {reason}")
    config, optim = ModelConfig(**job["model"]), OptimConfig(**job["optim"])
    System = LEARNERS[job["system"]]
    source = Path(job["source"]) if job["source"] else None
    tokens = np.load(job["tokens"])
    tokens = np.resize(tokens, (_BATCHES * job["batch_size"] + 1) * config.context_length)
    batches = [
        [ids.contiguous() for ids in batch(tokens, step, job["batch_size"], config.context_length, seed=1)]
        for step in range(_BATCHES)
    ]

    tiny = ModelConfig(**job["model"] | {"d_model": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "d_ff": 64})
    tiny_system = System(tiny, job["vocab_size"], job["attention"], source)
    inputs, targets = batches[0]
    make_step(tiny_system, optim, dtype, device, compiled=False)(inputs[:1], targets[:1], optim.max_learning_rate)
    del tiny_system
    before = reset_peak(device)

    system = System(config, job["vocab_size"], job["attention"], source)
    if job["system"] in SAME_FUNCTION:
        system.start_from(Lm(config, job["vocab_size"], "sdpa", None).model.state_dict())
    parameters = sum(p.numel() for p in system.model.parameters())
    step = make_step(system, optim, dtype, device, job["compile"])
    start = time.perf_counter()
    first_loss = float(step(*batches[0], optim.max_learning_rate))
    first_seconds = time.perf_counter() - start
    for number in range(_WARM_UP_STEPS):
        step(*batches[number % _BATCHES], optim.max_learning_rate)
    _synchronize(device)
    reset_peak(device)
    timings: list[float] = []
    number, group = 0, _STEPS_PER_TIMING[device.type]
    while len(timings) < _LEAST_TIMINGS or sum(timings) * group < job["seconds"]:
        start = time.perf_counter()
        for _ in range(group):
            step(*batches[number % _BATCHES], optim.max_learning_rate)
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


def product(job: dict[str, Any]) -> dict[str, float]:
    """The most FLOP/s of a large matrix product: what a step could reach."""
    device = torch.device(job["device"])
    size = _PRODUCT_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device).to(getattr(torch, job["dtype"])) for _ in range(2))
    best, spent = float("inf"), 0.0
    while spent < _PRODUCT_SECONDS:
        _synchronize(device)
        start = time.perf_counter()
        torch.matmul(left, right)
        _synchronize(device)
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds), spent + seconds
    return {"flops": 2 * size**3 / best}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return 0
    return reset_resident_peak()


def peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else resident_peak()


if __name__ == "__main__":
    main()
