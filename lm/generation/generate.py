"""Turn a prompt into requests, and the tokens of a batch into texts."""

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence

from lm.generation.batch import Batch, FinishReason, Request, Token
from lm.generation.config import SampleConfig
from lm.generation.text import Sample, TextStream
from lm.tokenizer.tokenizer import Tokenizer


class Reply:
    """Turns the tokens that continue a request into text, which ends at the first of the `stop` strings.

    `ended` tells whether a stop token or a stop string ended the text. `finish` is that of the last token fed.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._text = TextStream(stop)
        self.ended = False
        self.finish: FinishReason | None = None

    def feed(self, token: Token) -> str:
        """Add a token and return the new text that is certain; with the last token, all of the remaining text.

        The text never ends within a character or within what may become a stop string, so it may be empty.
        """
        piece = ""
        if token.token_id is not None and token.finish != "stop":
            piece = self._text.feed(self._tokenizer.decode_bytes([token.token_id]))
        self.finish = token.finish
        self.ended = token.finish == "stop" or self._text.stopped
        return piece + self._text.finish() if token.finish else piece


def requests(tokenizer: Tokenizer, prompt: str, config: SampleConfig, slide: bool = True) -> Iterator[Request]:
    """Return an iterator over `num_samples` requests to continue the prompt, with the seeds `seed`, `seed` + 1, ...

    Raises:
        UserError: the prompt cannot be encoded.
    """
    end_of_text_id = tokenizer.end_of_text_id
    prompt_ids = tokenizer.encode_prompt(prompt)
    return (
        Request(
            prompt_ids=prompt_ids,
            sampler=config.sampler,
            seed=config.seed + index,
            max_new_tokens=config.max_new_tokens,
            stop_ids=frozenset([end_of_text_id]),
            slide=slide,
        )
        for index in range(config.num_samples)
    )


def stream(
    batch: Batch, tokenizer: Tokenizer, pending: Iterable[Request], stop: Sequence[str] = ()
) -> Generator[tuple[int, str, Reply], None, None]:
    """Generate the texts of the pending requests, as many at once as the batch has free rows.

    Yields, for every token, the index of its request, the new text that is certain (see `Reply.feed`), and the reply of
    that request, which tells after the last token how the text ended.

    `batch` must be empty, and only this generator may use it. `pending` is read one by one as rows become free. Closing
    the generator removes unfinished texts from the batch.
    """
    numbered = enumerate(pending)
    running: dict[int, tuple[int, Reply]] = {}  # by row
    try:
        while True:
            for index, request in itertools.islice(numbered, batch.num_free):
                running[batch.add(request)] = index, Reply(tokenizer, stop)
            if not running:
                return
            for row, token in batch.step().items():
                index, reply = running[row]
                yield index, reply.feed(token), reply
                if token.finish or reply.ended:
                    batch.remove(row)
                    del running[row]
    finally:
        for row in running:
            batch.remove(row)


def complete(
    batch: Batch,
    tokenizer: Tokenizer,
    prompt: str,
    config: SampleConfig,
    stop: Sequence[str] = (),
    slide: bool = True,
) -> list[Sample]:
    """Generate `num_samples` continuations of a prompt; see `Reply` for `stop` and `Request` for `slide`."""
    texts = [prompt] * config.num_samples
    ended = [False] * config.num_samples
    for index, piece, reply in stream(batch, tokenizer, requests(tokenizer, prompt, config, slide), stop):
        texts[index] += piece
        ended[index] = reply.ended
    return [Sample(prompt, config.seed + index, texts[index], ended[index]) for index in range(config.num_samples)]


def window_notice(prompt_tokens: int, max_new_tokens: int, context_length: int, slide: bool = True) -> str | None:
    """Describe what happens to a prompt or text that does not fit into the context window; None if it fits."""
    if prompt_tokens > context_length and slide:
        return (
            f"the prompt has {prompt_tokens} tokens and the model sees {context_length}: "
            f"the first {prompt_tokens - context_length} are ignored"
        )
    if prompt_tokens + max_new_tokens > context_length:
        what = "the beginning of a longer text is forgotten" if slide else "the text ends there"
        return f"the model sees {context_length} tokens: {what}"
    return None
