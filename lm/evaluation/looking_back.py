"""Which attention heads look back: how much of their attention is on the text that is about to be repeated.

A model can predict a name that is already in the text by attending to an earlier mention and copying it. An induction
head does so for any text: it attends to the token after an earlier occurrence of the current token (Olsson et al.
2022). In both cases, a head looks back as far as it attends to tokens that are the same as those that come next.

Shapes: L layers, H heads, G key/value heads, T sequence, Q queries, K d_head, D d_model.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lm.evaluation.kinds import ReadStory, kind, read_stories
from lm.model.attention import MultiHeadSelfAttention, softmax
from lm.model.cost import training_flops_per_token
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer

_MAX_DOCUMENTS = 16  # which the grammar reads in about a second
_MAX_FLOPS = 5e10  # about a second of one core
_MIN_TOKENS = 256


class Repetition(NamedTuple):
    """Tokens of a document that occurred in it before.

    Attributes:
        start: The position of the first one, which a head that looks back helps to predict.
        stop: The position after the last one.
        earlier: The positions of the tokens of all earlier occurrences, in order.
    """

    start: int
    stop: int
    earlier: Sequence[int]


@dataclass(frozen=True)
class LookingBack:
    """How far the heads of a model look back.

    Attributes:
        share: The share of each head's attention that is on the earlier occurrences (L, H), the mean over all
            repetitions; NaN if there are none or the model's activations are not finite.
        even_share: What the share would be if the attention were spread evenly over the text so far.
        documents: The token ids of each document, as far as it was read.
        repetitions: The repetitions in each document.
    """

    share: np.ndarray
    even_share: float
    documents: list[np.ndarray]
    repetitions: list[list[Repetition]]

    @property
    def num_repetitions(self) -> int:
        return sum(map(len, self.repetitions))


def look_back(
    model: TransformerLM, tokenizer: Tokenizer, documents: Sequence[np.ndarray], are_stories: bool
) -> LookingBack:
    """Measure how far each head looks back, on the first few documents: the larger the model, the fewer.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        documents: The token ids of each document.
        are_stories: Whether the built-in grammar wrote the documents. Then the repetitions are the later mentions of
            names, and otherwise the pairs of tokens that occur again.

    Raises:
        UserError: The grammar cannot derive one of the stories.
    """
    flops = training_flops_per_token(model.config, model.vocab_size) / 3
    tokens_left = max(_MIN_TOKENS, int(_MAX_FLOPS / flops))
    used: list[np.ndarray] = []
    for ids in documents[:_MAX_DOCUMENTS]:
        if not tokens_left:
            break
        used.append(ids[: min(model.config.context_length, tokens_left)])
        tokens_left -= len(used[-1])
    if are_stories:
        whole = documents[: len(used)]
        found = [
            later_names(story, [tokenizer.decode_bytes([token_id]) for token_id in ids.tolist()])
            for story, ids in zip(read_stories(whole, tokenizer), whole, strict=True)
        ]
    else:
        found = [later_pairs(ids) for ids in used]
    repetitions = [[one for one in some if one.stop <= len(ids)] for some, ids in zip(found, used, strict=True)]

    total = torch.zeros(model.config.num_layers, model.config.num_heads, dtype=torch.float64)
    even = 0.0
    for ids, some in zip(used, repetitions, strict=True):
        weights = attention_weights(model, ids, [one.start for one in some], tokenizer.end_of_text_id)
        for query, one in enumerate(some):
            total += weights[:, :, query, list(one.earlier)].double().sum(-1)
            even += len(one.earlier) / (one.start + 1)
    count = sum(map(len, repetitions)) or math.nan
    return LookingBack(total.numpy() / count, even / count, used, repetitions)


def later_names(story: ReadStory, tokens: Sequence[bytes]) -> list[Repetition]:
    """The mentions of people's names that the text already has.

    Args:
        story: The story.
        tokens: The bytes of its tokens.

    Example: with one token per word, "a boy named Tom met Ann. Then Tom" has one, Repetition(7, 8, [3]).
    """
    starts = np.cumsum([0, *map(len, tokens)])  # of each token, in bytes
    char_starts = np.cumsum([0, *(len(char.encode()) for char in story.text)])

    def span(start: int, stop: int) -> range:
        """The tokens to which the characters belong."""
        first, last = np.searchsorted(starts, char_starts[[start, stop - 1]], side="right") - 1
        return range(first, last + 1)

    repetitions = []
    for part in story.reading.parts:
        if kind(part) == "later_name":
            name = re.escape(story.text[part.start : part.stop])
            mentions = re.finditer(rf"\b{name}\b", story.text[: part.start])
            earlier = [position for mention in mentions for position in span(*mention.span())]
            tokens_of_name = span(part.start, part.stop)
            repetitions.append(Repetition(tokens_of_name.start, tokens_of_name.stop, earlier))
    return repetitions


def later_pairs(token_ids: Sequence[int] | np.ndarray) -> list[Repetition]:
    """The tokens that complete a pair which the document already has; those of `lm.evaluation.kinds.repeated_pairs`.

    Example: the tokens 5 6 7 5 6 have one, Repetition(4, 5, [1]).
    """
    completed: dict[tuple[int, int], list[int]] = defaultdict(list)
    repetitions = []
    for position, pair in enumerate(pairwise(map(int, token_ids)), start=1):
        if pair in completed:
            repetitions.append(Repetition(position, position + 1, tuple(completed[pair])))
        completed[pair].append(position)
    return repetitions


@torch.no_grad()
def attention_weights(
    model: TransformerLM, token_ids: Sequence[int] | np.ndarray, positions: Sequence[int], end_of_text_id: int
) -> Tensor:
    """The attention weights with which the model predicts some tokens of a document.

    Args:
        model: The model.
        token_ids: The tokens of the document (T,), at most `context_length`. As everywhere, the model reads them after
            an end-of-text token.
        positions: The positions of the predicted tokens (Q,).
        end_of_text_id: The id of the end-of-text token.

    Returns:
        (L, H, Q, T - 1): the weight of each token of the document but the last one, which predicts nothing. What a row
        lacks of 1 is the weight of the end-of-text token before the document.
    """
    device = model.lm_head.weight.device
    inputs = torch.tensor([end_of_text_id, *map(int, token_ids)], device=device)  # (T + 1,)
    queries = torch.tensor(positions, dtype=torch.long, device=device)  # a token is predicted from the one before it
    weights: list[Tensor] = []

    def keep(attention: MultiHeadSelfAttention, arguments: tuple[Tensor, ...]) -> None:
        weights.append(head_weights(attention, arguments[0][0], queries)[..., 1:].cpu())

    attentions = [module for module in model.modules() if isinstance(module, MultiHeadSelfAttention)]
    hooks = [attention.register_forward_pre_hook(keep) for attention in attentions]
    try:
        model.hidden(inputs[None, :-1])
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(weights)


def head_weights(attention: MultiHeadSelfAttention, x: Tensor, queries: Tensor) -> Tensor:
    """The matrix softmax(Q Kᵀ / sqrt(K)) of the attention (Vaswani et al. 2017, equation 1), in rows.

    The input of the layer x (T, D), and the positions of the rows (Q,) -> (H, Q, T).
    """
    q = attention.q_proj(x[queries]).unflatten(-1, (-1, attention.d_head)).transpose(0, 1)  # (H, Q, K)
    k = attention.k_proj(x).unflatten(-1, (-1, attention.d_head)).transpose(0, 1)  # (G, T, K)
    q, k = attention.q_norm(q), attention.k_norm(k)
    if attention.rope is not None:
        q, k = attention.rope(q, queries), attention.rope(k)
    k = k.repeat_interleave(len(q) // len(k), dim=0)  # (H, T, K)
    scores = q @ k.transpose(-2, -1) / math.sqrt(attention.d_head)  # (H, Q, T)
    is_visible = torch.arange(len(x), device=x.device) <= queries[:, None]  # (Q, T)
    return softmax(scores.masked_fill(~is_visible, -math.inf), dim=-1)
