"""From logits to a distribution, each sampler a pure function of logits (..., V) on the CPU, and then to a token."""

import numpy as np
import torch
from torch import Tensor

from lm.generation.config import SamplerConfig


def penalise_repetition(logits: Tensor, seen_ids: Tensor, penalty: float) -> Tensor:
    """The logits of the tokens `seen_ids` (..., N) are divided by `penalty`, negative ones multiplied by it.

    Above 1 what was said becomes less likely, however often it was said; 1 changes nothing (Keskar et al. 2019, 4.1).
    """
    seen = logits.gather(-1, seen_ids)
    return logits.scatter(-1, seen_ids, torch.where(seen > 0, seen / penalty, seen * penalty))


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature: below 1 sharper, above 1 flatter; at 0 only the largest, the first of equals, stays."""
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, float("-inf")).scatter(-1, best, 0.0)
    return logits / temperature


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Only the `top_k` largest stay, and what equals the last of them (Fan et al. 2018); 0 keeps all."""
    if top_k == 0 or top_k >= logits.shape[-1]:
        return logits
    smallest = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """The smallest set of likeliest tokens whose probabilities sum to at least `top_p` stays (Holtzman et al. 2020).

    What equals the last of them stays too. Example: probabilities 0.5, 0.3, 0.2 and top_p 0.7 keep the first two; so
    does 0.8, while 0.81 keeps all.
    """
    if top_p == 1:
        return logits
    probabilities = logits.softmax(-1)
    ordered = torch.from_numpy(np.sort(probabilities.numpy())).flip(-1)  # in a tenth of the time of torch.sort
    before = ordered.cumsum(-1) - ordered  # the mass of all likelier tokens
    last = (before < top_p).sum(-1, keepdim=True).sub(1).clamp(min=0)
    return logits.masked_fill(probabilities < ordered.gather(-1, last), float("-inf"))


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """What is at least `min_p` times as likely as the likeliest token stays (Nguyen et al. 2024); 0 keeps all.

    Example: probabilities 0.5, 0.3, 0.2 and min_p 0.5 keep the first two, since 0.2 is less than 0.25.
    """
    if min_p == 0:
        return logits
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < min_p * probabilities.amax(-1, keepdim=True), float("-inf"))


def distribution(logits: Tensor, seen_ids: Tensor, config: SamplerConfig) -> Tensor:
    """Probabilities (..., V) of the next token: repetition penalty, temperature, then top-k, top-p and min-p.

    `seen_ids` (..., N) are the tokens of the text so far.
    """
    logits = logits.float()
    if config.repetition_penalty != 1:
        logits = penalise_repetition(logits, seen_ids, config.repetition_penalty)
    logits = apply_temperature(logits, config.temperature)
    logits = keep_top_p(keep_top_k(logits, config.top_k), config.top_p)
    return keep_min_p(logits, config.min_p).softmax(-1)


def draw(probabilities: Tensor, generator: torch.Generator) -> int:
    """A token of the distribution (V,): the first at which the sum of the probabilities exceeds a uniform number."""
    sums = probabilities.double().cumsum(-1)
    uniform = torch.rand((), dtype=torch.float64, generator=generator) * sums[-1]
    return min(int(torch.searchsorted(sums, uniform, right=True)), len(sums) - 1)
