"""Turn generated tokens into the response to a completion request: OpenAI's objects, streamed or complete.

A chunk of a stream contains the text that is certain so far and the tokens that produced it. Usually that is one token.
It is several if they form one character together, or if they looked like the beginning of a stop string but were not. A
complete response is the concatenation of its chunks, so both forms have the same content.
"""

import codecs
import secrets
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from lm.errors import UserError
from lm.generation.batch import Request, Token
from lm.generation.generate import Reply
from lm.serving.completion_request import ApiError, CompletionRequest
from lm.tokenizer.tokenizer import Tokenizer

Chunk = dict[str, Any]


class Completion:
    """The texts of one completion request: `n` for each prompt, in the order of the prompts.

    `requests` are the requests to generate them.

    Raises:
        ApiError: a prompt cannot be encoded, or it is longer than the context.
    """

    def __init__(self, request: CompletionRequest, model: str, tokenizer: Tokenizer, context_length: int) -> None:
        self._prompts = [_encode(prompt, tokenizer, context_length) for prompt in request.prompts]
        self._num_tokens = 0
        self._common_fields = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self.requests = [
            Request(
                prompt_ids=prompt_ids,
                sampler=request.sampler,
                seed=request.seed + number,
                max_new_tokens=request.max_tokens,
                stop_ids=frozenset([tokenizer.end_of_text_id]),
                slide=False,
                num_logprobs=request.logprobs,
            )
            for prompt_ids in self._prompts
            for number in range(request.n)
        ]
        self._choices = [_Choice(index, tokenizer, request) for index in range(len(self.requests))]

    @property
    def usage(self) -> dict[str, int]:
        """The number of tokens read and generated, including those that end a text and are not part of it."""
        prompt_tokens = sum(map(len, self._prompts))
        total = prompt_tokens + self._num_tokens
        return {"prompt_tokens": prompt_tokens, "completion_tokens": self._num_tokens, "total_tokens": total}

    @property
    def is_finished(self) -> bool:
        return all(choice.is_finished for choice in self._choices)

    def has_finished(self, index: int) -> bool:
        return self._choices[index].is_finished

    def feed(self, index: int, token: Token) -> Chunk | None:
        """Add the next token of the text with this index.

        Returns:
            The next chunk, or None if no more text is certain yet, or if the text had already finished.

        Raises:
            ApiError: the model's logits are not finite.
        """
        choice = self._choices[index]
        if choice.is_finished:
            return None
        if token.finish == "diverged":
            raise ApiError("the model diverged: its logits are not finite", HTTPStatus.INTERNAL_SERVER_ERROR)
        self._num_tokens += 1
        piece = choice.feed(token)
        return None if piece is None else {**self._common_fields, "choices": [piece]}

    def usage_chunk(self) -> Chunk:
        """Return the last chunk of a stream whose request has `include_usage`."""
        return {**self._common_fields, "choices": [], "usage": self.usage}

    def join(self, chunks: Iterable[Chunk]) -> Chunk:
        """Join all chunks to the response to a request without `stream`."""
        pieces: list[list[Chunk]] = [[] for _ in self._choices]
        for chunk in chunks:
            pieces[chunk["choices"][0]["index"]] += chunk["choices"]
        return {**self._common_fields, "choices": list(map(_join, pieces)), "usage": self.usage}


class _Choice:
    """One text of a completion. Log-probabilities are held back until the text of their token is certain."""

    def __init__(self, index: int, tokenizer: Tokenizer, request: CompletionRequest) -> None:
        self._index = index
        self._vocab = tokenizer.vocab
        self._reply = Reply(tokenizer, request.stop)
        self._has_logprobs = request.logprobs is not None
        self._held: list[tuple[str, float, dict[str, float], int]] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0  # where the next token begins in the text, in characters
        self._length = 0  # of the text returned so far, in characters
        self.is_finished = False

    def feed(self, token: Token) -> Chunk | None:
        text = self._reply.feed(token)
        self._length += len(text)
        self.is_finished = self._reply.ended or token.finish is not None
        if token.finish != "stop":
            self._hold_logprobs(token)
        if not text and not self.is_finished:
            return None
        finish_reason = None
        if self.is_finished:
            finish_reason = "stop" if self._reply.ended else "length"
            # Drop the tokens of a stop string, which is not part of the text.
            self._held = [held for held in self._held if held[-1] < self._length]
        tokens, self._held = self._held, []
        logprobs = _logprobs(tokens) if self._has_logprobs else None
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _hold_logprobs(self, token: Token) -> None:
        if token.token_id is None or token.logprob is None:
            return
        data = self._vocab[token.token_id]
        top = {_token_text(self._vocab[token_id]): logprob for token_id, logprob in token.top or []}
        text = _token_text(data)
        self._held.append((text, token.logprob, {text: token.logprob} | top, self._offset))
        self._offset += len(self._decoder.decode(data))


def _encode(prompt: str, tokenizer: Tokenizer, context_length: int) -> list[int]:
    """Return the tokens of a prompt. An empty prompt becomes the end-of-text token, after which a new text begins."""
    try:
        ids = tokenizer.encode(prompt) or [tokenizer.end_of_text_id]
    except UserError as error:
        raise ApiError(f"prompt: {error}", param="prompt") from error
    if len(ids) > context_length:
        message = f"prompt: expected at most {context_length:,} tokens, got {len(ids):,}; shorten it"
        raise ApiError(message, param="prompt", code="context_length_exceeded")
    return ids


def _token_text(data: bytes) -> str:
    r"""Return the text of a token. Bytes that are not UTF-8 are written as OpenAI does: b"\xc3" is `bytes:\xc3`."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _logprobs(tokens: list[tuple[str, float, dict[str, float], int]]) -> dict[str, list[Any]]:
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return dict(zip(names, map(list, zip(*tokens)))) if tokens else {name: [] for name in names}


def _join(pieces: list[Chunk]) -> Chunk:
    last = pieces[-1]  # contains the reason why the text finished
    logprobs = last["logprobs"] and {
        name: [value for piece in pieces for value in piece["logprobs"][name]] for name in last["logprobs"]
    }
    return {**last, "text": "".join(piece["text"] for piece in pieces), "logprobs": logprobs}
