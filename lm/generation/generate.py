"""Texts of a trained model: from a prompt to requests, and from the tokens that come to text."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lm.generation.batch import Batch, Finish, Request, Token
from lm.generation.config import SampleConfig
from lm.generation.text import TextStream
from lm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """`ended` tells whether the model or a stop string ended the text, or it was cut off."""

    prompt: str
    seed: int
    text: str
    ended: bool


class Reply:
    """What a request has drawn, as text; `ended` as in `Sample`, `finish` that of the last token, if it came."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._text = TextStream(stop)
        self.ended = False
        self.finish: Finish | None = None

    def feed(self, token: Token) -> str:
        """The text that is certain now; with the last token, all that is left."""
        piece = ""
        if token.token_id is not None and token.finish != "stop":
            piece = self._text.feed(self._tokenizer.decode_bytes([token.token_id]))
        self.finish = token.finish
        self.ended = token.finish == "stop" or self._text.stopped
        return piece + self._text.finish() if token.finish else piece


def requests(tokenizer: Tokenizer, prompt: str, config: SampleConfig, slide: bool = True) -> list[Request]:
    """`num_samples` requests with the seeds `seed`, `seed` + 1, ...; an empty prompt begins a text."""
    end_of_text_id = tokenizer.end_of_text_id
    prompt_ids = tokenizer.encode(prompt) or [end_of_text_id]
    return [
        Request(
            prompt_ids=prompt_ids,
            sampler=config.sampler,
            seed=config.seed + index,
            max_new_tokens=config.max_new_tokens,
            stop_ids=frozenset([end_of_text_id]),
            slide=slide,
        )
        for index in range(config.num_samples)
    ]


def grow(batch: Batch, asked: Sequence[Request], replies: Sequence[Reply]) -> Iterator[tuple[int, str]]:
    """Continue the requests, as many at once as the batch has rows; a number and a piece of text for every token.

    A piece comes through the reply of the same number, which at last tells how the text ended. It never ends within a
    character, nor within what may become a stop string: it may be empty.
    """
    waiting = deque(range(len(asked)))
    growing: dict[int, int] = {}  # by row
    try:
        while waiting or growing:
            while waiting and batch.num_free:
                index = waiting.popleft()
                growing[batch.add(asked[index])] = index
            for row, token in batch.step().items():
                index = growing[row]
                yield index, replies[index].feed(token)
                if token.finish or replies[index].ended:
                    batch.remove(row)
                    del growing[row]
    finally:  # the reader may have had enough
        for row in growing:
            batch.remove(row)


def complete(
    batch: Batch,
    tokenizer: Tokenizer,
    prompt: str,
    config: SampleConfig,
    stop: Sequence[str] = (),
    slide: bool = True,
) -> list[Sample]:
    """`num_samples` continuations of one prompt; `stop` as in `TextStream`, `slide` as in `Request`."""
    asked = requests(tokenizer, prompt, config, slide)
    replies = [Reply(tokenizer, stop) for _ in asked]
    texts = [prompt] * len(asked)
    for index, piece in grow(batch, asked, replies):
        texts[index] += piece
    return [Sample(prompt, request.seed, text, reply.ended) for request, text, reply in zip(asked, texts, replies)]


def window_notice(prompt_tokens: int, max_new_tokens: int, context_length: int, slide: bool = True) -> str | None:
    """What to tell about a prompt, or a text to come, that does not fit into the model's context; None if all fits."""
    if prompt_tokens > context_length and slide:
        return (
            f"the prompt has {prompt_tokens} tokens and the model sees {context_length}: "
            f"its first {prompt_tokens - context_length} are not seen"
        )
    if prompt_tokens + max_new_tokens > context_length:
        what = "it forgets the beginning" if slide else "the text ends"
        return f"the model sees {context_length} tokens: beyond them {what}"
    return None
