"""From logits to a distribution: each sampler a pure function of logits (..., V)."""

import torch
from torch import Tensor


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

    Example: probabilities 0.5, 0.3, 0.2 and top_p 0.7 keep the first two; so does 0.8, while 0.81 keeps all.
    """
    if top_p == 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # the mass of all likelier tokens
    ordered = ordered.masked_fill(before >= top_p, float("-inf"))
    return torch.empty_like(logits).scatter(-1, order, ordered)


def distribution(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probabilities (..., V) of the next token: temperature, then top-k, then top-p."""
    logits = apply_temperature(logits.float(), temperature)
    return keep_top_p(keep_top_k(logits, top_k), top_p).softmax(-1)
