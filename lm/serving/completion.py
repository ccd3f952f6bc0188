"""Turn generated tokens into the response to a completion request: OpenAI's objects, streamed or complete.

A chunk of a stream contains the text that is certain so far and the tokens that produced it. Usually that is one token.
It is several if they form one character together, or if they looked like the beginning of a stop string but were not. A
complete response is the concatenation of its chunks, so both forms have the same content.
"""

import codecs
import math
import secrets
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from lm.errors import UserError, quote
from lm.generation.batch import Request, Token
from lm.generation.generate import Reply
from lm.serving.completion_request import ApiError, CompletionRequest
from lm.tokenizer.tokenizer import Tokenizer

Chunk = dict[str, Any]
# A token's text, log-probability, that of the most likely tokens, and its position in the text
_Scored = tuple[str, float | None, dict[str, float] | None, int]


class Completion:
    """The texts of one completion request: `best_of` for each prompt, in the order of the prompts.

    `requests` are the requests to generate them.

    Raises:
        ApiError: a prompt cannot be encoded, or it is longer than the context; a token id is not in the vocabulary.
    """

    def __init__(self, request: CompletionRequest, model: str, tokenizer: Tokenizer, context_length: int) -> None:
        if unknown := [token_id for token_id in request.sampler.logit_bias if token_id not in tokenizer.vocab]:
            raise _not_a_token("logit_bias", unknown[0], tokenizer)
        self._prompts = [_Prompt(prompt, request, tokenizer, context_length) for prompt in request.prompts]
        self._n, self._best_of = request.n, request.best_of
        self._num_tokens = 0
        self._common_fields = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self.requests = [
            Request(
                prompt_ids=prompt.ids,
                sampler=request.sampler,
                seed=request.seed + number,
                max_new_tokens=request.max_tokens,
                stop_ids=frozenset([tokenizer.end_of_text_id]),
                slide=False,
                num_logprobs=0 if request.logprobs is None and request.best_of > request.n else request.logprobs,
                score_prompt=request.echo and request.logprobs is not None,
            )
            for prompt in self._prompts
            for number in range(request.best_of)
        ]
        self._choices = [
            _Choice(index, self._prompts[index // request.best_of], tokenizer, request)
            for index in range(len(self.requests))
        ]

    @property
    def usage(self) -> dict[str, int]:
        """The number of tokens read and generated, including those that end a text and are not part of it."""
        prompt_tokens = sum(len(prompt.ids) for prompt in self._prompts)
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
        self._num_tokens += token.token_id is not None
        piece = choice.feed(token)
        return None if piece is None else {**self._common_fields, "choices": [piece]}

    def usage_chunk(self) -> Chunk:
        """Return the last chunk of a stream whose request has `include_usage`."""
        return {**self._common_fields, "choices": [], "usage": self.usage}

    def join(self, chunks: Iterable[Chunk]) -> Chunk:
        """Join all chunks to the response to a request without `stream`.

        Of the `best_of` texts of a prompt, it contains the `n` with the highest log-probability per token.
        """
        pieces: list[list[Chunk]] = [[] for _ in self._choices]
        for chunk in chunks:
            pieces[chunk["choices"][0]["index"]] += chunk["choices"]
        best = []
        for start in range(0, len(self._choices), self._best_of):
            indices = list(range(start, start + self._best_of))
            if self._best_of > self._n:
                indices.sort(key=lambda index: self._choices[index].mean_logprob, reverse=True)
            best += [_join(pieces[index]) for index in indices[: self._n]]
        choices = [{**choice, "index": index} for index, choice in enumerate(best)]
        return {**self._common_fields, "choices": choices, "usage": self.usage}


class _Prompt:
    """A prompt as token ids.

    `echo` is its text, and `tokens` the bytes of each token in that text: none for an end-of-text token that was added.
    """

    def __init__(
        self, prompt: str | list[int], request: CompletionRequest, tokenizer: Tokenizer, context_length: int
    ) -> None:
        self.ids = _encode(prompt, request.add_special_tokens, tokenizer) if isinstance(prompt, str) else prompt
        if unknown := [token_id for token_id in self.ids if token_id not in tokenizer.vocab]:
            raise _not_a_token("prompt", unknown[0], tokenizer)
        if len(self.ids) > context_length:
            message = f"prompt: expected at most {context_length:,} tokens, got {len(self.ids):,}; shorten it"
            raise ApiError(message, param="prompt", code="context_length_exceeded")
        self.tokens = [tokenizer.vocab[token_id] for token_id in self.ids]
        if isinstance(prompt, str) and b"".join(self.tokens) != prompt.encode():
            self.tokens[0] = b""
        self.echo = b"".join(self.tokens).decode(errors="replace")


class _Choice:
    """One text of a completion. Log-probabilities are held back until the text of their token is certain."""

    def __init__(self, index: int, prompt: _Prompt, tokenizer: Tokenizer, request: CompletionRequest) -> None:
        self._index = index
        self._vocab = tokenizer.vocab
        self._reply = Reply(tokenizer, request.stop)
        self._has_logprobs = request.logprobs is not None
        self._held: list[_Scored] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._prompt = prompt
        self._has_echo = request.echo
        self._echo = prompt.echo if request.echo else ""  # returned with the first token
        self._offset = 0  # where the next token begins in the text, in characters
        self._length = 0  # of the text returned so far, in characters
        self._logprobs: list[float] = []
        self.is_finished = False

    @property
    def mean_logprob(self) -> float:
        return math.fsum(self._logprobs) / max(1, len(self._logprobs))

    def feed(self, token: Token) -> Chunk | None:
        for scored, data in zip(token.prompt or [], self._prompt.tokens):
            self._hold_logprobs(scored, data)
        if self._echo:
            self._offset = len(self._echo)
        text = self._echo + self._reply.feed(token)
        self._echo = ""
        self._length += len(text)
        self.is_finished = self._reply.ended or token.finish is not None
        if token.logprob is not None:
            self._logprobs.append(token.logprob)
        if token.token_id is not None:
            if token.finish != "stop":
                self._hold_logprobs(token, self._vocab[token.token_id])
            elif self._has_echo:  # as in vLLM; lm-eval always expects a generated token after those of the prompt
                self._hold_logprobs(token, b"")
        if not text and not self.is_finished:
            return None
        finish_reason = None
        if self.is_finished:
            finish_reason = "stop" if self._reply.ended else "length"
            if self._reply.ended and token.finish != "stop":
                # Drop the tokens of a stop string, which is not part of the text.
                self._held = [held for held in self._held if held[-1] < self._length]
        tokens, self._held = self._held, []
        logprobs = _logprobs(tokens) if self._has_logprobs else None
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _hold_logprobs(self, token: Token, data: bytes) -> None:
        """Hold back a token whose bytes in the text are `data`."""
        if not self._has_logprobs or token.token_id is None:
            return
        text = _token_text(self._vocab[token.token_id])
        top = None  # for the first token of a prompt
        if token.logprob is not None:
            top = {text: token.logprob}
            top |= {_token_text(self._vocab[token_id]): logprob for token_id, logprob in token.top or []}
        self._held.append((text, token.logprob, top, self._offset))
        self._offset += len(self._decoder.decode(data))


def _encode(prompt: str, add_special_tokens: bool, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens of a prompt. One without tokens becomes the end-of-text token, since a text needs a first."""
    try:
        ids = tokenizer.encode_prompt(prompt) if add_special_tokens else tokenizer.encode(prompt)
    except UserError as error:
        raise ApiError(f"prompt: {error}", param="prompt") from error
    return ids or [tokenizer.end_of_text_id]


def _not_a_token(param: str, token_id: int, tokenizer: Tokenizer) -> ApiError:
    message = f"{param}: expected token ids of 0 to {tokenizer.vocab_size - 1:,}, got {quote(token_id)}"
    return ApiError(message, param=param)


def _token_text(data: bytes) -> str:
    r"""Return the text of a token. Bytes that are not UTF-8 are written as OpenAI does: b"\xc3" is `bytes:\xc3`."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _logprobs(tokens: list[_Scored]) -> dict[str, list[Any]]:
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return dict(zip(names, map(list, zip(*tokens)))) if tokens else {name: [] for name in names}


def _join(pieces: list[Chunk]) -> Chunk:
    last = pieces[-1]  # contains the reason why the text finished
    logprobs = last["logprobs"] and {
        name: [value for piece in pieces for value in piece["logprobs"][name]] for name in last["logprobs"]
    }
    return {**last, "text": "".join(piece["text"] for piece in pieces), "logprobs": logprobs}
