"""Texts of a trained model: all samples of a prompt at once, or one after the other as they come."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lm.generation.batch import Batch, Request, Token
from lm.generation.config import SampleConfig
from lm.generation.decoder import Decoder
from lm.generation.text import TextStream
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer

MakeDecoder = Callable[[TransformerLM, int], Decoder]  # or what has its interface, such as `fastest_decoder`


@dataclass(frozen=True)
class Sample:
    """`ended` tells whether the model or a stop string ended the text, or it was cut off."""

    prompt: str
    seed: int
    text: str
    ended: bool


class Reply:
    """What a request has drawn, as text; `ended` as in `Sample`."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._text = TextStream(stop)
        self.ended = False

    def feed(self, token: Token) -> str:
        """The text that is certain now; with the last token, all that is left."""
        piece = ""
        if token.token_id is not None and token.finish != "stop":
            piece = self._text.feed(self._tokenizer.decode_bytes([token.token_id]))
        self.ended = token.finish == "stop" or self._text.stopped
        return piece + self._text.finish() if token.finish else piece


def requests(tokenizer: Tokenizer, prompt: str, config: SampleConfig, slide: bool = True) -> list[Request]:
    """`num_samples` requests with the seeds `seed`, `seed` + 1, ...; an empty prompt begins a text."""
    end_of_text_id = tokenizer.end_of_text_id
    return [
        Request(
            prompt_ids=tokenizer.encode(prompt) or [end_of_text_id],
            sampler=config.sampler,
            seed=config.seed + index,
            max_new_tokens=config.max_new_tokens,
            stop_ids=frozenset([end_of_text_id]),
            slide=slide,
        )
        for index in range(config.num_samples)
    ]


def complete(
    model: TransformerLM,
    tokenizer: Tokenizer,
    prompt: str,
    config: SampleConfig,
    stop: Sequence[str] = (),
    slide: bool = True,
    make_decoder: MakeDecoder = Decoder,
) -> list[Sample]:
    """`num_samples` continuations of one prompt, drawn together; `stop` as in `TextStream`, `slide` in `Request`."""
    asked = requests(tokenizer, prompt, config, slide)
    batch = Batch(make_decoder(model, len(asked)))
    replies = {batch.add(request): Reply(tokenizer, stop) for request in asked}
    texts = dict.fromkeys(replies, prompt)
    while batch:
        for row, token in batch.step().items():
            texts[row] += replies[row].feed(token)
            if replies[row].ended:
                batch.remove(row)
    return [Sample(prompt, request.seed, texts[row], replies[row].ended) for request, row in zip(asked, replies)]


def stream(
    model: TransformerLM,
    tokenizer: Tokenizer,
    prompt: str,
    config: SampleConfig,
    stop: Sequence[str] = (),
    slide: bool = True,
    make_decoder: MakeDecoder = Decoder,
) -> Iterator[str]:
    """The same samples one after the other: of each the prompt, a piece for every token drawn, and a line's end.

    A piece never ends within a character, nor within what may become a stop string: it may be empty.
    """
    batch = Batch(make_decoder(model, 1))
    for request in requests(tokenizer, prompt, config, slide):
        reply = Reply(tokenizer, stop)
        row = batch.add(request)
        yield prompt
        while batch:
            yield reply.feed(batch.step()[row])
            if reply.ended:
                batch.remove(row)
        yield "\n"


def window_notice(prompt_tokens: int, max_new_tokens: int, context_length: int, slide: bool = True) -> str | None:
    """What to tell about a prompt, or a text to come, that does not fit into the model's context; None if all fits."""
    if prompt_tokens > context_length:
        return (
            f"the prompt has {prompt_tokens} tokens and the model sees {context_length}: "
            f"its first {prompt_tokens - context_length} are not seen"
        )
    if prompt_tokens + max_new_tokens > context_length:
        what = "it forgets the beginning" if slide else "the text ends"
        return f"the model sees {context_length} tokens: beyond them {what}"
    return None
