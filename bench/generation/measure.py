"""One measurement in a fresh process: `python -m bench.generation.measure JOB` reads and prints a JSON object.

Not timed: imports, building the model from a seed, and one whole generation, during which the library compiles or loads
what it needs. Then whole generations are timed one by one for some seconds. A generation is greedy, starts with
`prompt_tokens` per row, and ends after `new_tokens` more. The program run.c is started for each generation and reports
its own time.

`peak_mb` is the largest memory during the timed generations: on the CPU resident memory, minus what the process held
after imports, so it includes the weights; for run.c all of its memory; on a GPU the memory allocated by PyTorch.
"""

import json
import sys
import time
from statistics import median
from typing import Any

import torch

from bench.common.memory import peak, reset_peak
from bench.generation.run_c import FIRST_TOKEN, MIN_TIMINGS, run_c
from bench.generation.systems import LIBRARIES
from lm.model.config import ModelConfig

_READ_SECONDS = 1.0


def main() -> None:
    job = json.loads(sys.argv[1])
    if job["task"] == "bandwidth":
        print(json.dumps(memory_bandwidth(job)))
    else:
        print(json.dumps(run_c(job) if job["system"] == "run.c" else generation_speed(job)))


def generation_speed(job: dict[str, Any]) -> dict[str, Any]:
    """Time the generations of a `system` in `dtype` for at least `seconds`.

    The job also has the `model` and `vocab_size` of a shape, `batch_size`, `prompt_tokens`, `new_tokens` and `device`.

    Raises:
        RuntimeError: the same prompts give different tokens in another generation.
    """
    device, vocab_size = torch.device(job["device"]), job["vocab_size"]
    before = reset_peak(device)
    generate = LIBRARIES[job["system"]](ModelConfig(**job["model"]), vocab_size, job["dtype"], device)
    prompts = [
        [(FIRST_TOKEN + row + 7 * place) % vocab_size for place in range(job["prompt_tokens"])]
        for row in range(job["batch_size"])
    ]
    ids = generate(prompts, job["new_tokens"])
    reset_peak(device)
    timings: list[float] = []
    while len(timings) < MIN_TIMINGS or sum(timings) < job["seconds"]:
        start = time.perf_counter()
        if generate(prompts, job["new_tokens"]) != ids:
            raise RuntimeError("the same prompts gave different tokens the second time")
        timings.append(time.perf_counter() - start)
    return {
        "seconds": median(timings),
        "generations": len(timings),
        "ids": ids,
        "peak_mb": (peak(device) - before) / 1e6,
    }


def memory_bandwidth(job: dict[str, Any]) -> dict[str, float]:
    """Return the highest rate, in bytes per second, of reading an array of `bytes` again that was just read."""
    device = torch.device(job["device"])
    data = torch.ones(job["bytes"] // 4, device=device)
    best, spent = float("inf"), 0.0
    while spent < _READ_SECONDS:
        start = time.perf_counter()
        float(data.sum())  # waits for a GPU
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds), spent + seconds
    return {"bytes_per_second": 4 * len(data) / best}


if __name__ == "__main__":
    main()
