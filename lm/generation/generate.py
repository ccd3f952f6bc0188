"""Text from a trained model, token by token.

Shapes: B samples, T sequence, V vocabulary.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lm.generation.config import SampleConfig
from lm.generation.sampling import distribution
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """`ended` tells whether the model ended the text itself, or `max_new_tokens` did."""

    prompt: str
    seed: int
    text: str
    ended: bool


@torch.no_grad()
def generate(
    model: TransformerLM, prompt_ids: list[int], seeds: list[int], end_of_text_id: int, config: SampleConfig
) -> Iterator[list[int | None]]:
    """Yield the next token of every sample, None for those that have ended, until all have or `max_new_tokens` came.

    A model whose logits are not finite yields nothing.

    A sample depends on its own seed only, never on its neighbours. The model sees the last `context_length` tokens:
    when a prompt or a text outgrows them, the window slides and the beginning is forgotten.
    """
    device = next(model.parameters()).device
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # on the CPU: the same draws on any device
    ids = torch.tensor(prompt_ids or [end_of_text_id], device=device).repeat(len(seeds), 1)  # (B, T)
    ended = [False] * len(seeds)
    for _ in range(config.max_new_tokens):
        logits = model(ids[:, -model.config.context_length :])[:, -1]  # (B, V)
        if not logits.isfinite().all():
            return  # a model that diverged has nothing to say
        probabilities = distribution(logits, config.temperature, config.top_k, config.top_p).cpu()
        drawn = [int(torch.multinomial(row, 1, generator=g)) for row, g in zip(probabilities, generators)]
        ended = [before or token == end_of_text_id for before, token in zip(ended, drawn)]
        yield [None if over else token for over, token in zip(ended, drawn)]
        if all(ended):
            return
        ids = torch.cat((ids, torch.tensor(drawn, device=device).unsqueeze(1)), dim=1)


def complete(model: TransformerLM, tokenizer: Tokenizer, prompt: str, config: SampleConfig) -> list[Sample]:
    """`num_samples` continuations of one prompt, with the seeds `seed`, `seed` + 1, ..."""
    prompt_ids = tokenizer.encode(prompt)
    seeds = [config.seed + index for index in range(config.num_samples)]
    drawn: list[list[int | None]] = [[] for _ in seeds]
    for tokens in generate(model, prompt_ids, seeds, tokenizer.end_of_text_id, config):
        for row, token in zip(drawn, tokens):
            row.append(token)
    return [
        Sample(
            prompt, seed, tokenizer.decode([*prompt_ids, *(token for token in row if token is not None)]), None in row
        )
        for seed, row in zip(seeds, drawn)
    ]


def stream(model: TransformerLM, tokenizer: Tokenizer, prompt: str, config: SampleConfig) -> Iterator[str]:
    """The same samples one after the other, piece by piece as they come, a character never cut in two."""
    prompt_ids = tokenizer.encode(prompt)
    for seed in range(config.seed, config.seed + config.num_samples):
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        yield prompt
        for (token,) in generate(model, prompt_ids, [seed], tokenizer.end_of_text_id, config):
            if token is not None:
                yield decoder.decode(tokenizer.decode_bytes([token]))
        yield decoder.decode(b"", final=True) + "\n"


def window_notice(prompt_tokens: int, max_new_tokens: int, context_length: int) -> str | None:
    """What to tell about a prompt, or a text to come, that does not fit into the model's context; None if all fits."""
    if prompt_tokens > context_length:
        return (
            f"the prompt has {prompt_tokens} tokens and the model sees {context_length}: "
            f"its first {prompt_tokens - context_length} are not seen"
        )
    if prompt_tokens + max_new_tokens > context_length:
        return f"the model sees {context_length} tokens: beyond them it forgets the beginning"
    return None
