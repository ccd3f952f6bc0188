"""Evaluation during training: the loss on the val split, the loss by kind of token, and a continuation of a prompt.

For the loss that other projects publish, the val split is read in order, in windows of the model's context length that
do not overlap. An end-of-text token is put before it, so that each of its tokens is a target exactly once and the sum
of the losses covers exactly the text whose bytes are counted for bits per byte.

These windows cut documents in two, and nobody can know a name that is mentioned only in the part before. The loss by
kind of token is therefore that of whole documents (see `lm.evaluation.documents`). While training reads only the
beginnings of documents, so does this evaluation: all else is new to the model.
"""

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from lm.evaluation.documents import predict, split_documents, text_bytes
from lm.evaluation.kinds import KINDS, Kind, read_stories, repeated_pairs
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.batches import document_starts
from lm.training.config import Precision
from lm.training.data import Data, Tokens
from lm.training.distributed import all_reduce_sum, num_processes, progress_bar_disabled, rank
from lm.training.loss import linear_cross_entropy

CONTINUATION_TOKENS = 64

# The columns of the loss curve that `DocumentLosses` fills. All are in nats per token, except for the first.
DOCUMENT_LOSSES = (
    "document_bits_per_byte",
    "later_name_nats",
    "later_other_nats",
    "wording_nats",
    "repeated_pair_nats",
    "new_pair_nats",
)

MAX_DOCUMENT_TOKENS = 1 << 16  # enough for a curve

_ONE_TOKEN = torch.zeros(1, 1, dtype=torch.int64)


def windows(tokens: Tokens, first_input: int, length: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and targets, each (B, T) int64, in which every token is a target once, in order.

    The last window is shorter if the tokens do not fill it.

    Example: the tokens 1 2 3 with first input 0 and length 2 give the inputs [0 1] and [2], the targets [1 2] and [3].
    """
    full = len(tokens) // length
    for first in range(0, full, batch_size):
        start, stop = first * length, min(first + batch_size, full) * length
        before = tokens[start - 1 : start] if start else [first_input]
        ids = torch.from_numpy(np.concatenate((before, tokens[start:stop])).astype(np.int64))
        yield ids[:-1].view(-1, length), ids[1:].view(-1, length)
    if rest := len(tokens) - full * length:
        before = tokens[-rest - 1 : -rest] if full else [first_input]
        ids = torch.from_numpy(np.concatenate((before, tokens[-rest:])).astype(np.int64))
        yield ids[None, :-1], ids[None, 1:]


@torch.no_grad()
def mean_loss(
    model: TransformerLM,
    tokens: Tokens,
    end_of_text_id: int,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    document_mask: bool = False,
) -> float:
    """Mean loss over all of `tokens`, in nats per token, summed in float64. Several processes share the batches."""
    length = model.config.context_length
    mine = islice(windows(tokens, end_of_text_id, length, batch_size), rank(), None, num_processes())
    full, rest = divmod(len(tokens), length)
    rounds = -(-(-(-full // batch_size) + (rest > 0)) // num_processes())
    nats = 0.0
    for _ in trange(rounds, desc="evaluating", leave=False, delay=2, unit="batch", disable=progress_bar_disabled()):
        # With sharded weights, all processes must call the model equally often: one without a batch passes one token.
        batch = next(mine, None)
        inputs, targets = (ids.to(device) for ids in batch or (_ONE_TOKEN, _ONE_TOKEN))
        starts = document_starts(inputs, end_of_text_id) if document_mask else None
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = linear_cross_entropy(model.hidden(inputs, document_starts=starts), model.lm_head.weight, targets)
        if batch:
            nats += loss.item() * targets.numel()
    return all_reduce_sum(torch.tensor(nats, dtype=torch.float64)).item() / len(tokens)


class DocumentLosses:
    """The loss on whole documents: the first ones of the val split, up to 65,536 tokens.

    For the built-in stories, there is also the loss of later mentions of names and of other things, which a model knows
    once it has learned to look back, and of wording. For every text, there is the loss of the tokens that complete a
    pair which the document already has, and of the others.

    Raises:
        UserError: the entropy of the val split is known, but it does not consist of the built-in stories.
    """

    def __init__(self, data: Data, tokenizer: Tokenizer) -> None:
        self._end_of_text_id = tokenizer.end_of_text_id
        self._documents = split_documents(data.val[:MAX_DOCUMENT_TOKENS], self._end_of_text_id)
        if len(self._documents) > 1 and self._documents[-1][-1] != self._end_of_text_id:
            self._documents.pop()  # it was cut off
        self._tokenizer = tokenizer
        repeated = [repeated_pairs(ids) for ids in self._documents]
        # For each group, which tokens of every document belong to it.
        self._groups = {"repeated_pair_nats": repeated, "new_pair_nats": [~pairs for pairs in repeated]}
        if data.val_entropy_bits is not None:
            stories = read_stories(self._documents, tokenizer, progress_bar_disabled())
            names: tuple[Kind, ...] = ("later_name", "later_other", "wording")
            for name in names:
                self._groups[f"{name}_nats"] = [story.tokens.kinds == KINDS.index(name) for story in stories]

    def __call__(self, model: TransformerLM, max_length: int | None = None) -> dict[str, float | None]:
        """Return a value for each of DOCUMENT_LOSSES; it is None if there are no such tokens, or if it is not finite.

        With `max_length`, only so many tokens from the beginning of each document are read. With several processes, all
        of them compute the same, because they have to call a sharded model equally often.
        """
        documents = [ids[:max_length] for ids in self._documents]
        predictions = predict(model, documents, self._end_of_text_id, disable=progress_bar_disabled())
        nats = np.concatenate([prediction.nats for prediction in predictions])
        losses = {"document_bits_per_byte": nats.sum() / math.log(2) / text_bytes(documents, self._tokenizer).sum()}
        for name, members in self._groups.items():
            chosen = np.concatenate([member[:max_length] for member in members])
            if chosen.any():
                losses[name] = nats[chosen].mean()
        return {
            name: float(value) if (value := losses.get(name)) is not None and math.isfinite(value) else None
            for name in DOCUMENT_LOSSES
        }


@torch.no_grad()
def greedy_continuation(model: TransformerLM, tokenizer: Tokenizer, prompt: str, device: torch.device) -> str:
    """Continue `prompt` with the most probable tokens, up to an end-of-text token; returns only the continuation."""
    prompt_ids = tokenizer.encode_prompt(prompt)
    ids = list(prompt_ids)
    for _ in range(CONTINUATION_TOKENS):
        window = torch.tensor([ids[-model.config.context_length :]], device=device)
        next_id = int(model(window)[0, -1].argmax())
        if next_id == tokenizer.end_of_text_id:
            break
        ids.append(next_id)
    return tokenizer.decode(ids[len(prompt_ids) :])
