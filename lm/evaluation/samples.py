"""Texts that a model generates, judged by the grammar of the stories (after Allen-Zhu & Li 2023, part 1)."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tqdm import tqdm

from lm.corpus.grammar import Grammar
from lm.corpus.grammar_reader import read
from lm.evaluation.documents import predict
from lm.evaluation.kinds import KINDS, Kind, kind
from lm.evaluation.statistics import Estimate, mean
from lm.generation.batch import Batch
from lm.generation.config import SampleConfig
from lm.generation.generate import requests, stream
from lm.generation.numba_decoder import fastest_decoder
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer

Mistake = Kind | Literal["ending"]
MISTAKES: tuple[Mistake, ...] = (*KINDS, "ending")

_MAX_ROWS = 256  # texts generated at the same time


@dataclass(frozen=True)
class Judgment:
    """What the grammar says about a text.

    Attributes:
        bits: -log2 of its probability, or None if the grammar cannot derive it.
        correct_share: The share of its characters that come before the first mistake.
        mistake: What the grammar expected there. It is `ending` if the text ends too early or goes on for too long.
    """

    bits: float | None
    correct_share: float
    mistake: Mistake | None


def judge(grammar: Grammar, text: str) -> Judgment:
    """Judge a text.

    Example: with a grammar that can only say "Tom sat. Tom ran.", the text "Tom sat. Ben ran." gives
    Judgment(None, 9 / 17, "later_name").
    """
    reading = read(grammar, text)
    if reading.mistake is None:
        return Judgment(math.fsum(reading.bits), 1.0, None)
    is_ending = reading.mistake == len(text) or reading.parts[-1].stop == reading.mistake
    mistake: Mistake = "ending" if is_ending else kind(reading.parts[-1])
    return Judgment(None, reading.mistake / max(1, len(text)), mistake)


def generate_texts(model: TransformerLM, tokenizer: Tokenizer, config: SampleConfig, slide: bool) -> list[str]:
    """Generate `num_samples` texts from their beginning; a text that does not end in time is cut.

    `slide` is that of `lm.generation.batch.Request`.
    """
    texts = [""] * config.num_samples
    batch = Batch(fastest_decoder(model, min(config.num_samples, _MAX_ROWS)))
    with tqdm(total=len(texts), desc="generating", unit="text", delay=1, leave=False, disable=None) as bar:
        for index, piece, reply in stream(batch, tokenizer, requests(tokenizer, "", config, slide)):
            texts[index] += piece
            bar.update(reply.finish is not None)
    return texts


def share_of_copies(texts: Sequence[str], tokenizer: Tokenizer, documents: Collection[bytes]) -> float:
    """The share of the texts that are equal to one of the documents, which are given by the bytes of their tokens."""
    ends = [tokenizer.end_of_text_id]
    encoded = [np.array(tokenizer.encode(text) + ends, dtype=tokenizer.dtype).tobytes() for text in texts]
    return sum(data in documents for data in encoded) / len(texts)


def reverse_divergence(
    model: TransformerLM, tokenizer: Tokenizer, texts: Sequence[str], judgments: Sequence[Judgment]
) -> Estimate | None:
    """KL(model || grammar) in bits per story, or None if the grammar derives none of the texts.

    A model that makes any mistake has an infinite divergence. The estimate is therefore for the model's distribution
    restricted to texts that the grammar derives, q(x) / q(derivable). `texts` must have been sampled at temperature 1.
    The probability of a text is that of its usual tokens; a model may also write it with others.
    """
    derivable = [(text, judgment.bits) for text, judgment in zip(texts, judgments) if judgment.bits is not None]
    if not derivable:
        return None
    end_of_text_id = tokenizer.end_of_text_id
    documents = [[*tokenizer.encode(text), end_of_text_id] for text, _ in derivable]
    predictions = predict(model, documents, end_of_text_id, "scoring texts")
    differences = mean(
        np.array([bits - p.nats.sum() / math.log(2) for p, (_, bits) in zip(predictions, derivable, strict=True)])
    )
    share = len(derivable) / len(texts)
    stderr = None
    if differences.stderr is not None:
        share_stderr = math.sqrt((1 - share) / (share * len(texts))) / math.log(2)  # of log2(share)
        stderr = math.hypot(differences.stderr, share_stderr)
    return Estimate(differences.value - math.log2(share), stderr)
