"""Several texts that grow together, a token each at every step, each as if it were alone.

    batch = Batch(Decoder(model, num_rows=8))
    row = batch.add(request)  # at any time, as long as a row is free
    while batch:
        for row, token in batch.step().items():
            ...

Shapes: V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lm.errors import UserError
from lm.generation.config import SamplerConfig
from lm.generation.decoder import Decoder
from lm.generation.sampling import distribution, draw

Finish = Literal["stop", "length", "context", "diverged"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A text to be continued until one of `stop_ids` or `max_new_tokens` came, or the model's context is full.

    With `slide` the last case is none: at every further token the model reads the last `context_length` tokens again,
    and the beginning is forgotten. `num_logprobs` asks for the log-probabilities of so many of the likeliest tokens.
    """

    prompt_ids: Sequence[int]
    sampler: SamplerConfig
    seed: int
    max_new_tokens: int
    stop_ids: frozenset[int]
    slide: bool = True
    num_logprobs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Token:
    """What a step adds to a text.

    `logprob` is the natural logarithm of the probability that the model itself gives the token, before any sampler, and
    `top` holds the likeliest tokens with theirs, if they were asked for. `finish` tells that it is the last one, and
    why: a token that stops (no part of the text), as many as were asked for, no more room in the context, or a largest
    logit that is not finite: nothing can be drawn then, and there is no token.
    """

    token_id: int | None
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None
    finish: Finish | None = None


@dataclass
class _Text:
    request: Request
    ids: list[int]
    generator: torch.Generator
    is_cached: bool = False  # all of its tokens but the last


class Batch:
    """Texts under way, each in a row of the decoder; true while there are any.

    A text depends on its request only, never on its neighbours, up to rounding: every one draws with a generator of its
    own.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._context_length = decoder.model.config.context_length
        self._texts: dict[int, _Text] = {}

    def __bool__(self) -> bool:
        return bool(self._texts)

    @property
    def num_free(self) -> int:
        return len(self._decoder.lengths) - len(self._texts)

    def add(self, request: Request) -> int:
        """Begin a text; the row that names it in `step`.

        Raises:
            UserError: the prompt is empty, or it may not slide and does not fit into the context.
            IndexError: no row is free.
        """
        length = len(request.prompt_ids)
        if not length:
            raise UserError("the prompt has no tokens; begin with the end of a text")
        if length > self._context_length and not request.slide:
            raise UserError(f"the prompt has {length} tokens, and the model sees {self._context_length}; shorten it")
        row = next((row for row in range(len(self._decoder.lengths)) if row not in self._texts), None)
        if row is None:
            raise IndexError("no row is free")
        # On the CPU: the same draws on any device.
        self._texts[row] = _Text(request, list(request.prompt_ids), torch.Generator().manual_seed(request.seed))
        return row

    def remove(self, row: int) -> None:
        """End a text before its time; nothing happens if it has ended."""
        self._texts.pop(row, None)

    def step(self) -> dict[int, Token]:
        """One more token for every text; those that it finishes make room."""
        tokens: dict[int, Token] = {}
        for rows, logits in self._logits():
            # NumPy's takes one thread, and leaves the others to the decoder.
            likeliest = logits.numpy().argmax(-1).tolist()
            for row, of_row, token_id in zip(rows, logits, likeliest):
                if row is not None:
                    tokens[row] = self._extend(self._texts[row], of_row, token_id)
        for row, token in tokens.items():
            if token.finish:
                del self._texts[row]
        return tokens

    def _logits(self) -> Iterator[tuple[list[int | None], Tensor]]:
        """Rows and the logits (rows, V) of their next token: of those that go on, and of those that are read anew."""
        cached = {row: text.ids[-1] for row, text in self._texts.items() if text.is_cached}
        fresh = {row: text.ids[-self._context_length :] for row, text in self._texts.items() if not text.is_cached}
        if cached:
            rows = [row if row in cached else None for row in range(max(cached) + 1)]
            yield rows, self._decoder.decode([cached.get(row) for row in rows]).float().cpu()
        if fresh:
            yield list(fresh), self._decoder.prefill(list(fresh), list(fresh.values())).float().cpu()

    def _extend(self, text: _Text, logits: Tensor, likeliest: int) -> Token:
        """The token that follows on `logits` (V,), of which that of `likeliest` is the largest, or not a number."""
        request = text.request
        if not math.isfinite(logits[likeliest]):
            return Token(token_id=None, finish="diverged")  # a model that diverged has nothing to say
        if request.sampler.temperature == 0 and request.sampler.repetition_penalty == 1:
            token_id = likeliest  # the only token of the distribution
        else:
            token_id = draw(distribution(logits, torch.tensor(text.ids), request.sampler), text.generator)
        text.ids.append(token_id)
        # The window holds its tokens but the last, which `decode` brings, as long as there is a column for that.
        text.is_cached = len(text.ids) <= self._context_length
        finish: Finish | None = None
        if token_id in request.stop_ids:
            finish = "stop"
        elif len(text.ids) == len(request.prompt_ids) + request.max_new_tokens:
            finish = "length"
        elif not text.is_cached and not request.slide:
            finish = "context"
        if request.num_logprobs is None:
            return Token(token_id=token_id, finish=finish)
        logprobs = logits.log_softmax(-1)
        top = logprobs.topk(min(request.num_logprobs, len(logprobs)))
        return Token(
            token_id=token_id,
            logprob=float(logprobs[token_id]),
            top=list(zip(top.indices.tolist(), top.values.tolist())),
            finish=finish,
        )
