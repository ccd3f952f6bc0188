"""The systems that are compared: how each generates greedily, in its fastest way, with the same weights.

A system is a function `system(config, vocab_size, dtype, device)` that builds a model with the weights of
`bench.common.models.Lm`, in `float32`, `bfloat16` or `int8`, and returns a function `generate(prompts, new_tokens)`.
That one returns the `new_tokens` token ids that follow each prompt. `run.c` is a program; see `bench.generation.run_c`.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch

from bench.common.models import Lm, Transformers
from bench.generation.llama_cpp import LlamaCpp
from lm.generation.batch import Batch, Request
from lm.generation.config import SamplerConfig
from lm.generation.decoder import Decoder
from lm.generation.numba_decoder import fastest_decoder
from lm.generation.quantized import to_int8
from lm.model.config import ModelConfig
from lm.model.transformer import TransformerLM

Generate = Callable[[list[list[int]], int], list[list[int]]]


def lm(config: ModelConfig, vocab_size: int, dtype: str, device: torch.device) -> Generate:
    """This project with the fastest decoder for the device."""
    return _generate_with(_model(config, vocab_size, dtype, device), fastest_decoder)


def lm_pytorch(config: ModelConfig, vocab_size: int, dtype: str, device: torch.device) -> Generate:
    """This project with the decoder that works on every device, not compiled."""
    return _generate_with(_model(config, vocab_size, dtype, device), Decoder)


def _model(config: ModelConfig, vocab_size: int, dtype: str, device: torch.device) -> TransformerLM:
    model = Lm(config, vocab_size).model.to(device).eval()
    return to_int8(model) if dtype == "int8" else model.to(getattr(torch, dtype))


def _generate_with(model: TransformerLM, make_decoder: Callable[[TransformerLM, int], Any]) -> Generate:
    greedy = SamplerConfig(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    decoder = cache(partial(make_decoder, model))  # built once, like the model

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
                if token.token_id is not None:
                    ids[row].append(token.token_id)
        return list(ids.values())

    return generate


def transformers(config: ModelConfig, vocab_size: int, dtype: str, device: torch.device) -> Generate:
    """The `generate` of transformers with its default settings, on a Llama with our weights."""
    if dtype == "int8":
        raise ValueError("transformers needs other packages for int8 weights")
    system = Transformers(config, vocab_size, "sdpa")
    system.load_weights(Lm(config, vocab_size).model)
    model = system.model.to(device, getattr(torch, dtype)).eval()

    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=device)
        settings = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens, "do_sample": False, "use_cache": True}
        # No token is special: none is padding, and none ends a text.
        special = {"pad_token_id": vocab_size, "eos_token_id": None, "bos_token_id": None}
        continued = model.generate(ids, attention_mask=torch.ones_like(ids), **settings, **special)
        return continued[:, ids.shape[1] :].tolist()

    return generate


LIBRARIES: dict[str, Callable[[ModelConfig, int, str, torch.device], Generate]] = {
    "lm": lm,
    "lm-pytorch": lm_pytorch,
    "transformers": transformers,
    "llama.cpp": LlamaCpp,
}
PACKAGES = {"transformers": "transformers", "llama.cpp": "llama-cpp-python"}
SYSTEMS = [*LIBRARIES, "run.c"]
