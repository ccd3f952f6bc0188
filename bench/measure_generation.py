"""One measurement of generation in a process of its own: `python bench/measure_generation.py JOB` prints a JSON object.

Not timed: imports, building the model from a seed, and one whole generation, which compiles or loads what the library
needs. Then whole generations are timed one by one for some seconds. A generation is greedy, begins with one token in
every row, and ends after `new_tokens` more. The program run.c is started for each, and its time is the one it reports.

`peak_mb` is the most memory during the timed generations: on the CPU resident, above what the process held after
imports, the weights included (all that run.c holds); on a GPU allocated.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from statistics import median
from typing import Any

import torch
from learners import Lm, Transformers
from measure_training import peak, reset_peak
from run_c import FIRST_TOKEN, LEAST_TIMINGS, run_c
from torch import nn

from lm.model.config import ModelConfig

_READ_SECONDS = 1.0

Generate = Callable[[list[list[int]], int], list[list[int]]]


def main() -> None:
    job = json.loads(sys.argv[1])
    if job["task"] == "bandwidth":
        print(json.dumps(bandwidth(job)))
    else:
        print(json.dumps(run_c(job) if job["system"] == "run.c" else generation(job)))


def generation(job: dict[str, Any]) -> dict[str, Any]:
    """Generate by a `system`, with the `model` and `vocab_size` of a shape, in `dtype`, for `seconds` at least.

    The job also holds `batch_size`, `new_tokens` and `device`.
    """
    device, dtype = torch.device(job["device"]), getattr(torch, job["dtype"])
    before = reset_peak(device)
    generate = SYSTEMS[job["system"]](ModelConfig(**job["model"]), job["vocab_size"], dtype, device)
    prompts = [[(FIRST_TOKEN + row) % job["vocab_size"]] for row in range(job["batch_size"])]
    ids = generate(prompts, job["new_tokens"])
    reset_peak(device)
    timings: list[float] = []
    while len(timings) < LEAST_TIMINGS or sum(timings) < job["seconds"]:
        start = time.perf_counter()
        if generate(prompts, job["new_tokens"]) != ids:
            raise RuntimeError("the same prompts gave other tokens the second time")
        timings.append(time.perf_counter() - start)
    return {
        "seconds": median(timings),
        "generations": len(timings),
        "ids": ids,
        "peak_mb": (peak(device) - before) / 1e6,
    }


def bandwidth(job: dict[str, Any]) -> dict[str, float]:
    """The most bytes a second at which `bytes` that were just read are read again."""
    device = torch.device(job["device"])
    data = torch.ones(job["bytes"] // 4, device=device)
    best, spent = float("inf"), 0.0
    while spent < _READ_SECONDS:
        start = time.perf_counter()
        float(data.sum())  # waits for a GPU
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds), spent + seconds
    return {"bytes_per_second": 4 * len(data) / best}


def lm(config: ModelConfig, vocab_size: int, dtype: torch.dtype, device: torch.device) -> Generate:
    """Ours, on the fastest decoder of the device."""
    from lm.generation.numba_decoder import fastest_decoder

    return _ours(Lm(config, vocab_size, "sdpa", None).model.to(device, dtype).eval(), fastest_decoder)


def lm_pytorch(config: ModelConfig, vocab_size: int, dtype: torch.dtype, device: torch.device) -> Generate:
    """Ours, on the decoder that serves every device."""
    from lm.generation.decoder import Decoder

    return _ours(Lm(config, vocab_size, "sdpa", None).model.to(device, dtype).eval(), Decoder)


def _ours(model: nn.Module, make_decoder: Callable[[nn.Module, int], Any]) -> Generate:
    from lm.generation.batch import Batch, Request
    from lm.generation.config import SamplerConfig

    greedy = SamplerConfig(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    decoder = cache(partial(make_decoder, model))  # made once, as the model is

    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        batch = Batch(decoder(len(prompts)))
        ids: dict[int, list[int]] = {}
        for prompt in prompts:
            request = Request(
                prompt_ids=prompt, sampler=greedy, seed=1, max_new_tokens=new_tokens, stop_ids=frozenset()
            )
            ids[batch.add(request)] = []
        while batch:
            for row, token in batch.step().items():
                ids[row].append(token.token_id)
        return list(ids.values())

    return generate


def transformers(config: ModelConfig, vocab_size: int, dtype: torch.dtype, device: torch.device) -> Generate:
    """Hugging Face's `generate`, as it comes, on a Llama with our weights."""
    system = Transformers(config, vocab_size, "sdpa", None)
    system.start_from(Lm(config, vocab_size, "sdpa", None).model.state_dict())
    model = system.model.to(device, dtype).eval()

    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=device)
        settings = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens, "do_sample": False, "use_cache": True}
        # No token is special: none is padding, none ends a text.
        special = {"pad_token_id": vocab_size, "eos_token_id": None, "bos_token_id": None}
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), **settings, **special)
        return whole[:, ids.shape[1] :].tolist()

    return generate


SYSTEMS: dict[str, Callable[[ModelConfig, int, torch.dtype, torch.device], Generate]] = {
    "lm": lm,
    "lm-pytorch": lm_pytorch,
    "transformers": transformers,
}


if __name__ == "__main__":
    main()
