"""What a model is worth: its loss on all of the val split, and a continuation to look at.

The val split is read side by side in windows of the model's context, in order. An end-of-text marker is put before it,
so that every one of its tokens is a target once, and the sum of nats is over exactly the text that the bytes count.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.batches import document_starts
from lm.training.distributed import all_reduce_sum, is_first, num_processes, rank
from lm.training.loss import linear_cross_entropy

CONTINUATION_TOKENS = 64

_ONE_TOKEN = torch.zeros(1, 1, dtype=torch.int64)


def windows(tokens: np.ndarray, first_input: int, length: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets, (B, T) int64 each, that cover every token as a target once, in order; the last are shorter.

    Example: the tokens 1 2 3 with first input 0 and length 2 give the inputs [0 1] and [2], the targets [1 2] and [3].
    """
    full = len(tokens) // length
    for first in range(0, full, batch_size):
        start, stop = first * length, min(first + batch_size, full) * length
        before = tokens[start - 1] if start else first_input
        ids = torch.from_numpy(np.concatenate(([before], tokens[start:stop])).astype(np.int64))
        yield ids[:-1].view(-1, length), ids[1:].view(-1, length)
    if rest := len(tokens) - full * length:
        before = tokens[-rest - 1] if full else first_input
        ids = torch.from_numpy(np.concatenate(([before], tokens[-rest:])).astype(np.int64))
        yield ids[None, :-1], ids[None, 1:]


@torch.no_grad()
def mean_loss(
    model: TransformerLM,
    tokens: np.ndarray,
    end_of_text_id: int,
    batch_size: int,
    device: torch.device,
    precision: str,
    document_mask: bool = False,
) -> float:
    """Mean nats a token over all of `tokens`; the sum is taken in float64. Several processes take batches in turn."""
    length = model.config.context_length
    mine = islice(windows(tokens, end_of_text_id, length, batch_size), rank(), None, num_processes())
    full, rest = divmod(len(tokens), length)
    rounds = -(-(-(-full // batch_size) + (rest > 0)) // num_processes())
    nats = 0.0
    for _ in trange(rounds, desc="evaluating", leave=False, delay=2, unit="batch", disable=not is_first()):
        # With sharded weights, all must compute equally often: the one that has no batch left takes a token in vain.
        batch = next(mine, None)
        inputs, targets = (ids.to(device) for ids in batch or (_ONE_TOKEN, _ONE_TOKEN))
        starts = document_starts(inputs, end_of_text_id) if document_mask else None
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = linear_cross_entropy(model.hidden(inputs, document_starts=starts), model.lm_head.weight, targets)
        if batch:
            nats += loss.item() * targets.numel()
    return all_reduce_sum(torch.tensor(nats, dtype=torch.float64)).item() / len(tokens)


@torch.no_grad()
def greedy_continuation(model: TransformerLM, tokenizer: Tokenizer, prompt: str, device: torch.device) -> str:
    """The likeliest next token again and again, up to an end of text; the prompt is not repeated."""
    prompt_ids = tokenizer.encode(prompt)
    ids = list(prompt_ids)
    for _ in range(CONTINUATION_TOKENS):
        window = torch.tensor([ids[-model.config.context_length :]], device=device)
        next_id = int(model(window)[0, -1].argmax())
        if next_id == tokenizer.end_of_text_id:
            break
        ids.append(next_id)
    return tokenizer.decode(ids[len(prompt_ids) :])
