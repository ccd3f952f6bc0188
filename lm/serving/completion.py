"""The reply to a request for completions: tokens in, OpenAI's objects out, in pieces or as a whole.

A piece (a chunk of a stream) holds the text that is certain now and the tokens that it came from: as a rule one token,
or as many as it takes to make a character, or to know that what looked like a stop string is none. The whole is its
pieces joined, so both forms say the same.
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
    """The texts of one request, in the order of its prompts, `n` of each."""

    def __init__(self, asked: CompletionRequest, model: str, tokenizer: Tokenizer, context_length: int) -> None:
        self._asked = asked
        self._prompts = [_encode(prompt, tokenizer, context_length) for prompt in asked.prompts]
        self._num_tokens = 0
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self.requests = [
            Request(
                prompt_ids=prompt_ids,
                sampler=asked.sampler,
                seed=asked.seed + number,
                max_new_tokens=asked.max_tokens,
                stop_ids=frozenset([tokenizer.end_of_text_id]),
                slide=False,
                num_logprobs=asked.logprobs,
            )
            for prompt_ids in self._prompts
            for number in range(asked.n)
        ]
        self._choices = [_Choice(index, tokenizer, asked) for index in range(len(self.requests))]

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read and tokens drawn; one that ended a text counts, though it is no part of it."""
        prompt_tokens = sum(map(len, self._prompts))
        total = prompt_tokens + self._num_tokens
        return {"prompt_tokens": prompt_tokens, "completion_tokens": self._num_tokens, "total_tokens": total}

    @property
    def is_finished(self) -> bool:
        return all(choice.is_finished for choice in self._choices)

    def has_finished(self, index: int) -> bool:
        return self._choices[index].is_finished

    def feed(self, index: int, token: Token) -> Chunk | None:
        """What the next token of a text adds to the reply, if that is certain; nothing once the text has finished.

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
        return None if piece is None else {**self._head, "choices": [piece]}

    def last_chunk(self) -> Chunk:
        """What follows the chunks of a stream that was asked to tell its usage."""
        return {**self._head, "choices": [], "usage": self.usage}

    def whole(self, chunks: Iterable[Chunk]) -> Chunk:
        """All chunks joined: the reply to a request without `stream`."""
        pieces: list[list[Chunk]] = [[] for _ in self._choices]
        for chunk in chunks:
            pieces[chunk["choices"][0]["index"]] += chunk["choices"]
        return {**self._head, "choices": list(map(_joined, pieces)), "usage": self.usage}


class _Choice:
    """One text: the token's bytes become pieces of text, with the log-probabilities kept until theirs is certain."""

    def __init__(self, index: int, tokenizer: Tokenizer, asked: CompletionRequest) -> None:
        self._index = index
        self._vocab = tokenizer.vocab
        self._reply = Reply(tokenizer, asked.stop)
        self._logprobs = asked.logprobs is not None
        self._waiting: list[tuple[str, float, dict[str, float], int]] = []
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0  # where the next token begins in the text
        self._length = 0  # of the text that was given out
        self.is_finished = False

    def feed(self, token: Token) -> Chunk | None:
        text = self._reply.feed(token)
        self._length += len(text)
        self.is_finished = self._reply.ended or token.finish is not None
        if self._logprobs and token.finish != "stop":
            self._wait(token)
        if not text and not self.is_finished:
            return None
        finish_reason = None
        if self.is_finished:
            finish_reason = "stop" if self._reply.ended else "length"
            # A stop string takes its tokens with it.
            self._waiting = [waiting for waiting in self._waiting if waiting[-1] < self._length]
        tokens, self._waiting = self._waiting, []
        logprobs = _as_lists(tokens) if self._logprobs else None
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _wait(self, token: Token) -> None:
        top = {_name(self._vocab[token_id]): logprob for token_id, logprob in token.top}
        data = self._vocab[token.token_id]
        self._waiting.append((_name(data), token.logprob, {_name(data): token.logprob} | top, self._offset))
        self._offset += len(self._characters.decode(data))


def _encode(prompt: str, tokenizer: Tokenizer, context_length: int) -> list[int]:
    """The tokens of a prompt; an empty one begins a text."""
    try:
        ids = tokenizer.encode(prompt) or [tokenizer.end_of_text_id]
    except UserError as error:
        raise ApiError(f"prompt: {error}", param="prompt") from error
    if len(ids) > context_length:
        message = f"prompt: it has {len(ids):,} tokens, and the model sees {context_length:,}; shorten it"
        raise ApiError(message, param="prompt", code="context_length_exceeded")
    return ids


def _name(data: bytes) -> str:
    r"""A token as text; where it is not, as OpenAI writes it: b"\xc3" is `bytes:\xc3`."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _as_lists(tokens: list[tuple[str, float, dict[str, float], int]]) -> dict[str, list[Any]]:
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return dict(zip(names, map(list, zip(*tokens)))) if tokens else {name: [] for name in names}


def _joined(pieces: list[Chunk]) -> Chunk:
    *_, last = pieces  # tells how the text ended
    logprobs = last["logprobs"] and {
        name: [value for piece in pieces for value in piece["logprobs"][name]] for name in last["logprobs"]
    }
    return {**last, "text": "".join(piece["text"] for piece in pieces), "logprobs": logprobs}
