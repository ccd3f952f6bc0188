"""Which windows of the token file make up a batch: a pure function of the seed and the step.

Each epoch visits every window of `context_length` tokens once, in random order. The order is a permutation that can be
computed at any single index and is never stored, so a resumed run has no state of the data loader to restore.
"""

import numpy as np
import torch
from torch import Tensor

from lm.training.data import Tokens

_ROUNDS = 6
_MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _hash(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele et al. 2014), uint64 -> uint64: every input bit affects every output bit."""
    x = x + _MIX[0]
    x = (x ^ (x >> np.uint64(30))) * _MIX[1]
    x = (x ^ (x >> np.uint64(27))) * _MIX[2]
    return x ^ (x >> np.uint64(31))


def permute(indices: np.ndarray, n: int, key: tuple[int, int]) -> np.ndarray:
    """Apply to each of `indices` a pseudorandom permutation of 0 ... n - 1 that depends on `key`.

    A Feistel network permutes 0 ... 4^b - 1, the smallest such range that contains 0 ... n - 1. If it maps an index to
    n or above, it is applied again until the result is below n (cycle walking, Black & Rogaway 2002).
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    with np.errstate(over="ignore"):
        base = _hash(_hash(np.array(key[0], dtype=np.uint64)) + np.array(key[1], dtype=np.uint64))
        keys = [_hash(base + np.uint64(i)) for i in range(_ROUNDS)]
        result = indices.astype(np.uint64)
        walking = np.arange(len(result))
        while len(walking):
            left, right = result[walking] >> half, result[walking] & low
            for round_key in keys:
                left, right = right, left ^ (_hash(right ^ round_key) & low)
            result[walking] = (left << half) | right
            walking = walking[result[walking] >= n]
    return result.astype(np.int64)


def num_windows(num_tokens: int, context_length: int) -> int:
    """Number of windows without overlap. Each also needs the token after it, as the target of its last position."""
    return (num_tokens - 1) // context_length


def batch(tokens: Tokens, step: int, batch_size: int, context_length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of training step `step` = 0, 1, 2, ..., each (B, T) int64, from the 1-d `tokens`.

    A batch may contain the end of one epoch and the start of the next, which has a different order.
    """
    n = num_windows(len(tokens), context_length)
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // n
    windows = np.empty_like(positions)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        windows[chosen] = permute(positions[chosen] % n, n, (seed, int(epoch)))
    starts = windows * context_length
    rows = np.stack([tokens[start : start + context_length + 1] for start in starts]).astype(np.int64)
    return torch.from_numpy(rows[:, :-1]), torch.from_numpy(rows[:, 1:])


def document_starts(token_ids: Tensor, separator: int) -> Tensor:
    """For each position of (B, T) windows, the position at which its document begins.

    A separator is the first token of its document.

    Example: with separator 0, the window 5 6 0 7 8 0 has the starts 0 0 2 2 2 5.
    """
    positions = torch.arange(token_ids.shape[-1], device=token_ids.device)
    return torch.where(token_ids == separator, positions, 0).cummax(-1).values
