"""Which windows of the token file make up a batch: a pure function of the seed and the step.

Each epoch visits every window once, in random order. The order is a permutation that can be computed at any single
index and is never stored, so a resumed run has no state of the data loader to restore.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from lm.training.config import Windows
from lm.training.data import Tokens
from lm.training.distributed import progress_bar_disabled

_ROUNDS = 6
_SLICE = 1 << 24  # tokens that are searched at once
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


def window_starts(tokens: Tokens, windows: Windows, context_length: int, end_of_text_id: int) -> Sequence[int]:
    """The positions in `tokens` at which windows of `context_length` begin.

    A window also needs the token after it, as the target of its last position. With `stream`, windows follow each other
    without overlap. With `documents`, a window begins with the end-of-text token before each document, as a prompt does
    (the first document has none), and the rest of a longer document is read in further windows. A window that is longer
    than its document continues with the next one, so an epoch reads some text more than once: with documents that are
    much shorter than the context, use `stream`.

    Example: with end-of-text token 0, the tokens 5 0 6 7 8 9 0 4 4 and windows of 2 begin at 0, 2, 4 and 6 (stream), or
    at 0, 1, 3, 5 and 6 (documents).
    """
    last = len(tokens) - 1 - context_length
    if windows == "stream":
        return range(0, last + 1, context_length)
    slices = trange(
        0, len(tokens), _SLICE, desc="finding documents", delay=1, leave=False, disable=progress_bar_disabled()
    )
    separators = [first + np.flatnonzero(tokens[first : first + _SLICE] == end_of_text_id) for first in slices]
    begins = np.concatenate([[0], *separators])
    lengths = np.diff(begins, append=len(tokens))
    counts = -(-lengths // context_length)  # of windows per document
    earlier = np.repeat(np.cumsum(counts) - counts, counts)  # windows of earlier documents
    starts = np.repeat(begins, counts) + context_length * (np.arange(len(earlier)) - earlier)
    return starts[starts <= last]


def batch(
    tokens: Tokens, starts: Sequence[int], step: int, batch_size: int, length: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of training step `step` = 0, 1, 2, ..., each (B, T) int64, from the 1-d `tokens`.

    Each row has the first `length` tokens of one of the windows that begin at `starts`. A batch may contain the end of
    one epoch and the start of the next, which has a different order.
    """
    n = len(starts)
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // n
    chosen = np.empty_like(positions)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        chosen[in_epoch] = permute(positions[in_epoch] % n, n, (seed, int(epoch)))
    rows = np.stack([tokens[start : start + length + 1] for start in (int(starts[i]) for i in chosen.tolist())])
    ids = torch.from_numpy(rows.astype(np.int64))
    return ids[:, :-1], ids[:, 1:]


def document_starts(token_ids: Tensor, separator: int) -> Tensor:
    """For each position of (B, T) windows, the position at which its document begins.

    A separator is the first token of its document.

    Example: with separator 0, the window 5 6 0 7 8 0 has the starts 0 0 2 2 2 5.
    """
    positions = torch.arange(token_ids.shape[-1], device=token_ids.device)
    return torch.where(token_ids == separator, positions, 0).cummax(-1).values
