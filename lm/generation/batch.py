"""Generate several texts at once, one token of each per step.

    batch = Batch(Decoder(model, num_rows=8))
    row = batch.add(request)  # at any time, as long as a row is free
    while batch:
        for row, token in batch.step().items():
            ...

Shapes: V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from lm.errors import UserError
from lm.generation.config import SamplerConfig
from lm.generation.sampling import distribution, draw
from lm.model.transformer import TransformerLM

FinishReason = Literal["stop", "length", "context", "diverged"]

_SCORED_AT_ONCE = 64  # tokens of a prompt, to limit the memory for their logits


class BatchDecoder(Protocol):
    """What a `Batch` needs of its decoder; `Decoder` documents the methods, and `NumbaDecoder` has them too."""

    @property
    def model(self) -> TransformerLM: ...

    @property
    def context_length(self) -> int: ...

    @property
    def lengths(self) -> Sequence[int]: ...

    def prefill(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor: ...

    def decode(self, token_ids: Sequence[int | None]) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to continue.

    The text ends with the first token of `stop_ids`, after `max_new_tokens` tokens, or when the context window is full.
    With `slide`, a full window does not end it: each further token is predicted from as many of the last tokens as the
    decoder holds, which the model reads again, and the beginning is forgotten.

    `num_logprobs` is the number of most likely tokens to report with each token, or None for no log-probabilities.
    With `score_prompt`, they are also reported for the tokens of the prompt. `max_new_tokens` may then be 0.
    """

    prompt_ids: Sequence[int]
    sampler: SamplerConfig
    seed: int
    max_new_tokens: int
    stop_ids: frozenset[int]
    slide: bool = True
    num_logprobs: int | None = None
    score_prompt: bool = False


@dataclass(frozen=True, kw_only=True)
class Token:
    """The token that a step adds to a text.

    `logprob` is the natural logarithm of the model's own probability of the token, before any sampler changed it.
    `top` has the most likely tokens with their log-probabilities, most likely first. Both are None unless requested.
    `prompt` has the tokens of the prompt if their scores were requested and this is the first token of the text. The
    first token of a prompt has no log-probability, since nothing predicts it.

    `finish` is None, or the reason why this token is the last one:
        stop: it is one of `stop_ids`, and not part of the text.
        length: the text has `max_new_tokens` new tokens. If that is 0, `token_id` is None.
        context: the context window is full.
        diverged: the model's largest logit is not finite, so no token can be drawn, and `token_id` is None.
    """

    token_id: int | None
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None
    prompt: "list[Token] | None" = None
    finish: FinishReason | None = None


@dataclass
class _Text:
    """A text that is being generated: its request, and the tokens of its prompt and its continuation.

    `is_cached` tells whether the decoder's row holds all tokens but the last.
    """

    request: Request
    ids: list[int]
    generator: torch.Generator
    is_cached: bool = False


class Batch:
    """The texts that are being generated, each in one row of the decoder; it is true while there are any.

    A text depends only on its request and not on the other texts, up to rounding, because each has its own random
    number generator.
    """

    def __init__(self, decoder: BatchDecoder) -> None:
        self._decoder = decoder
        self._context_length = decoder.context_length
        self._texts: dict[int, _Text] = {}

    def __bool__(self) -> bool:
        return bool(self._texts)

    @property
    def num_free(self) -> int:
        """The number of rows without a text."""
        return len(self._decoder.lengths) - len(self._texts)

    def add(self, request: Request) -> int:
        """Start a text and return its row, which identifies it in `step`.

        Raises:
            UserError: the prompt is empty, or it is longer than the context window and `slide` is false.
            IndexError: no row is free.
        """
        length = len(request.prompt_ids)
        if not length:
            raise UserError("the prompt has no tokens; start with the end-of-text token")
        if length > self._context_length and not request.slide:
            raise UserError(f"the prompt has {length} tokens, and the model sees {self._context_length}; shorten it")
        row = next((row for row in range(len(self._decoder.lengths)) if row not in self._texts), None)
        if row is None:
            raise IndexError("no row is free")
        # The generator is on the CPU, so that every device draws the same numbers.
        self._texts[row] = _Text(request, list(request.prompt_ids), torch.Generator().manual_seed(request.seed))
        return row

    def remove(self, row: int) -> None:
        """Stop generating the text in this row; does nothing if it has already finished."""
        self._texts.pop(row, None)

    def step(self) -> dict[int, Token]:
        """Generate one more token for every text, by row. The rows of texts that finish become free."""
        texts = list(self._texts.items())
        tokens = {row: self._finish_prompt(text.request) for row, text in texts if not text.request.max_new_tokens}
        for rows, logits in self._logits():
            tokens |= dict(zip(rows, self._extend([self._texts[row] for row in rows], logits), strict=True))
        for row, token in tokens.items():
            if token.finish:
                del self._texts[row]
        return tokens

    def _logits(self) -> Iterator[tuple[list[int], Tensor]]:
        """Yield rows and the logits (rows, V) of their next tokens: first those of cached texts, then all others."""
        texts = {row: text for row, text in self._texts.items() if text.request.max_new_tokens}
        cached = {row: text.ids[-1] for row, text in texts.items() if text.is_cached}
        uncached = {row: text.ids[-self._context_length :] for row, text in texts.items() if not text.is_cached}
        if cached:
            logits = self._decoder.decode([cached.get(row) for row in range(max(cached) + 1)]).float().cpu()
            rows = list(cached)
            if rows != list(range(len(logits))):  # NumPy copies in one thread, and leaves the others to the decoder
                logits = torch.from_numpy(logits.numpy()[rows])
            yield rows, logits
        if uncached:
            yield list(uncached), self._decoder.prefill(list(uncached), list(uncached.values())).float().cpu()

    def _extend(self, texts: list[_Text], logits: Tensor) -> list[Token]:
        """Draw the next token of every text from its logits, a row of (len(texts), V)."""
        # NumPy's argmax uses one thread, too.
        best = logits.numpy().argmax(-1, keepdims=True)
        diverged = ~np.isfinite(np.take_along_axis(logits.numpy(), best, -1))[:, 0]
        token_ids = best[:, 0].tolist()
        with _one_thread():
            for group in _groups(texts, diverged):
                for index, token_id in zip(group, _draw([texts[index] for index in group], logits[group])):
                    token_ids[index] = token_id
        return [
            Token(token_id=None, finish="diverged") if is_diverged else self._append(text, token_id, text_logits)
            for text, token_id, text_logits, is_diverged in zip(texts, token_ids, logits, diverged)
        ]

    def _append(self, text: _Text, token_id: int, logits: Tensor) -> Token:
        """Add a token, which was drawn from `logits` (V,), to a text."""
        request = text.request
        is_first = len(text.ids) == len(request.prompt_ids)
        text.ids.append(token_id)
        # `decode` appends the last token, so the row needs room for it.
        text.is_cached = len(text.ids) <= self._context_length
        finish: FinishReason | None = None
        if token_id in request.stop_ids:
            finish = "stop"
        elif len(text.ids) == len(request.prompt_ids) + request.max_new_tokens:
            finish = "length"
        elif not text.is_cached and not request.slide:
            finish = "context"
        if request.num_logprobs is None:
            return Token(token_id=token_id, finish=finish)
        (token,) = _with_logprobs(logits[None], [token_id], request.num_logprobs)
        if is_first and request.score_prompt:
            scored = self._finish_prompt(request)
            return scored if scored.finish == "diverged" else replace(token, prompt=scored.prompt, finish=finish)
        return replace(token, finish=finish)

    @torch.no_grad()
    def _finish_prompt(self, request: Request) -> Token:
        """Return the result of a text without new tokens: the log-probabilities of the prompt, if requested."""
        if not request.score_prompt:
            return Token(token_id=None, finish="length")
        model, ids = self._decoder.model, list(request.prompt_ids)
        device = model.token_embeddings.weight.device
        hidden = model.hidden(torch.tensor(ids, device=device))  # (N, D)
        tokens = [Token(token_id=ids[0])]
        for start in range(0, len(ids) - 1, _SCORED_AT_ONCE):
            predicted = ids[start + 1 : start + 1 + _SCORED_AT_ONCE]
            logits = model.lm_head(hidden[start : start + len(predicted)]).float().cpu()
            if not logits.isfinite().all():
                return Token(token_id=None, finish="diverged")
            tokens += _with_logprobs(logits, predicted, request.num_logprobs or 0)
        return Token(token_id=None, prompt=tokens, finish="length")


def _groups(texts: Sequence[_Text], diverged: np.ndarray) -> list[list[int]]:
    """The indices of the texts whose next token is drawn at random, grouped by what can be drawn together.

    These are texts with equal samplers, unless a sampler depends on the tokens of the text.
    """
    groups: list[tuple[SamplerConfig, list[int]]] = []
    for index, text in enumerate(texts):
        sampler = text.request.sampler
        if diverged[index] or (sampler.temperature == 0 and not sampler.changes_logits):
            continue  # the most likely token is the only one with a probability above 0
        equal = (group for other, group in groups if other == sampler and not sampler.changes_logits)
        if (group := next(equal, None)) is None:
            groups.append((sampler, group := []))
        group.append(index)
    return [group for _, group in groups]


def _draw(texts: list[_Text], logits: Tensor) -> list[int]:
    """Draw the next token of each text of a group from its logits, a row of (len(texts), V)."""
    first = texts[0]
    # The end-of-text token in front is not a repetition: with a penalty on it, no text would end.
    skipped = int(first.ids[0] in first.request.stop_ids)
    seen_ids = torch.tensor([first.ids[skipped:]], dtype=torch.long)  # used for groups of one text only
    prompt_length = len(first.request.prompt_ids) - skipped
    probabilities = distribution(logits, seen_ids, first.request.sampler, prompt_length)
    return draw(probabilities, [text.generator for text in texts])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let PyTorch compute in this thread alone.

    Its other threads spin for a while after an operation, on the processors that those of the decoder's next step need.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _with_logprobs(logits: Tensor, token_ids: list[int], num_top: int) -> list[Token]:
    """Return tokens with the log-probabilities that the logits (N, V) give them."""
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(-1, torch.tensor(token_ids)[:, None])[:, 0].tolist()
    top = logprobs.topk(min(num_top, logprobs.shape[-1]))
    return [
        Token(token_id=token_id, logprob=logprob, top=list(zip(ids, values)))
        for token_id, logprob, ids, values in zip(token_ids, own, top.indices.tolist(), top.values.tolist())
    ]
