"""The loss of a model on whole documents, each read from its beginning.

Documents that are longer than the model's context are read in windows that overlap by half.

Shapes: B batch, T sequence, N tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer

_MAX_LOGITS = 1 << 24  # computed at once


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for the tokens of some text, each array (N,).

    Attributes:
        nats: -log of the probability of each token, given the tokens before it.
        top_probability: The probability of the most probable token.
        top_is_right: Whether the most probable token is the one in the text.
    """

    nats: np.ndarray
    top_probability: np.ndarray
    top_is_right: np.ndarray


def split_documents(tokens: Any, end_of_text_id: int) -> list[np.ndarray]:
    """Split the tokens of a split into its documents, which end with an end-of-text token; the last one may lack it.

    Example: with end-of-text token 0, the tokens 5 6 0 7 0 are the documents [5 6 0] and [7 0].
    """
    tokens = np.asarray(tokens[:])
    ends = np.flatnonzero(tokens == end_of_text_id) + 1
    documents = np.split(tokens, ends)
    return [document for document in documents if len(document)]


def overlapping_windows(length: int, context_length: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, first) of the windows that read a document of `length` tokens.

    The inputs of a window are the tokens `start - 1` to `stop - 2`, where -1 is the end-of-text token before the
    document, its targets are the tokens `start` to `stop - 1`, and those from `first` on are counted. Windows overlap
    by half, so that except at the beginning of a document, every token is predicted from at least half a window.

    Example: for 10 tokens and a context of 4, they are (0, 4, 0), (2, 6, 4), (4, 8, 6) and (6, 10, 8).
    """
    start = first = 0
    while first < length:
        stop = min(start + context_length, length)
        yield start, stop, first
        first = stop
        start += max(1, context_length // 2)


def text_bytes(documents: Sequence[np.ndarray], tokenizer: Tokenizer) -> np.ndarray:
    """The number of bytes of each document's text (N,), without the end-of-text tokens."""
    sizes = np.array([len(tokenizer.vocab[token_id]) for token_id in range(tokenizer.vocab_size)])
    sizes[tokenizer.end_of_text_id] = 0
    return np.array([sizes[ids].sum() for ids in documents])


@torch.no_grad()
def predict(
    model: TransformerLM,
    documents: Sequence[Sequence[int] | np.ndarray],
    end_of_text_id: int,
    what: str = "evaluating",
    disable: bool | None = None,
) -> list[Predictions]:
    """Return the model's predictions of the tokens of every document.

    Windows of similar length are computed together. `what` and `disable` are arguments of the progress bar.
    """
    context_length, device = model.config.context_length, model.lm_head.weight.device
    rows = [
        (index, *window)
        for index, ids in enumerate(documents)
        for window in overlapping_windows(len(ids), context_length)
    ]
    rows.sort(key=lambda row: row[2] - row[1])
    results = [
        Predictions(np.empty(len(ids), np.float64), np.empty(len(ids), np.float32), np.empty(len(ids), bool))
        for ids in documents
    ]
    bar = tqdm(total=sum(map(len, documents)), desc=what, unit="token", delay=1, leave=False, disable=disable)
    with bar:
        for batch in _batches(rows, max(1, _MAX_LOGITS // model.vocab_size)):
            longest = batch[-1][2] - batch[-1][1]
            token_ids = np.full((len(batch), longest + 1), end_of_text_id, dtype=np.int64)
            for row, (index, start, stop, _) in enumerate(batch):
                if start:
                    token_ids[row, 0] = documents[index][start - 1]
                token_ids[row, 1 : stop - start + 1] = documents[index][start:stop]
            ids = torch.from_numpy(token_ids).to(device)
            nats, top_probability, top_is_right = _score(model(ids[:, :-1]), ids[:, 1:])
            for row, (index, start, stop, first) in enumerate(batch):
                result, counted = results[index], slice(first - start, stop - start)
                result.nats[first:stop] = nats[row, counted]
                result.top_probability[first:stop] = top_probability[row, counted]
                result.top_is_right[first:stop] = top_is_right[row, counted]
                bar.update(stop - first)
    return results


def _score(logits: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (B, T, V) and targets (B, T) -> nats, probability of the top choice, whether it is right, each (B, T)."""
    logits = logits.float()
    log_total = logits.logsumexp(-1)
    top_logits, top_ids = logits.max(-1)
    nats = log_total - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    top_probability = (top_logits - log_total).exp()
    return nats.cpu().numpy(), top_probability.cpu().numpy(), (top_ids == targets).cpu().numpy()


def _batches(rows: list[tuple[int, int, int, int]], max_tokens: int) -> Iterator[list[tuple[int, int, int, int]]]:
    """Group rows, which are sorted by length, into batches of at most `max_tokens` tokens with padding."""
    batch: list[tuple[int, int, int, int]] = []
    for row in rows:
        if batch and (row[2] - row[1]) * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
