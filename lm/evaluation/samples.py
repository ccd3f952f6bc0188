"""Texts that a model generates, judged by the grammar of the stories (after Allen-Zhu & Li 2023, part 1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from lm.corpus.grammar import Grammar
from lm.corpus.grammar_reader import read
from lm.evaluation.documents import predict, split_documents
from lm.evaluation.kinds import KINDS, Kind, kind
from lm.evaluation.statistics import Estimate, mean
from lm.generation.batch import Batch, Request
from lm.generation.config import SamplerConfig
from lm.generation.generate import stream
from lm.generation.numba_decoder import fastest_decoder
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer

Mistake = Kind | Literal["ending"]
MISTAKES: tuple[Mistake, ...] = (*KINDS, "ending")

_MAX_ROWS = 64  # texts generated at the same time


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

    Example: with a grammar that can only say "Tom sat. Tom ran.", the text "Tom sat. Ben ran." has its first mistake at
    character 9, where a later name is expected.
    """
    reading = read(grammar, text)
    if reading.mistake is None:
        return Judgment(math.fsum(reading.bits), 1.0, None)
    is_ending = reading.mistake == len(text) or reading.parts[-1].stop == reading.mistake
    mistake: Mistake = "ending" if is_ending else kind(reading.parts[-1])
    return Judgment(None, reading.mistake / max(1, len(text)), mistake)


def generate_texts(
    model: TransformerLM, tokenizer: Tokenizer, sampler: SamplerConfig, num_samples: int, seed: int, max_new_tokens: int
) -> list[str]:
    """Generate texts from their beginning, with the seeds `seed`, `seed` + 1, ...; a text that does not end is cut."""
    requests = (
        Request(
            prompt_ids=[tokenizer.end_of_text_id],
            sampler=sampler,
            seed=seed + index,
            max_new_tokens=max_new_tokens,
            stop_ids=frozenset([tokenizer.end_of_text_id]),
        )
        for index in range(num_samples)
    )
    texts = [""] * num_samples
    batch = Batch(fastest_decoder(model, min(num_samples, _MAX_ROWS)))
    with tqdm(total=num_samples, desc="generating", unit="text", delay=1, leave=False, disable=None) as bar:
        for index, piece, reply in stream(batch, tokenizer, requests):
            texts[index] += piece
            bar.update(reply.finish is not None)
    return texts


def share_in_train(texts: Sequence[str], tokenizer: Tokenizer, train_tokens: Any) -> float:
    """The share of the texts that are equal to a document of the train split."""
    ends = [tokenizer.end_of_text_id]
    encoded = [np.array(tokenizer.encode(text) + ends, dtype=tokenizer.dtype).tobytes() for text in texts]
    wanted = set(encoded)
    documents = split_documents(train_tokens, tokenizer.end_of_text_id)
    found = {data for document in documents if (data := document.tobytes()) in wanted}
    return sum(data in found for data in encoded) / len(texts)


def reverse_divergence(
    model: TransformerLM, tokenizer: Tokenizer, texts: Sequence[str], judgments: Sequence[Judgment]
) -> Estimate | None:
    """KL divergence of the model from the grammar, in bits per story; None if the grammar derives none of the texts.

    Because it is infinite for a model that makes any mistake, it is that of the model's distribution among the texts
    that the grammar derives, q(x) / q(derivable), estimated from texts that were sampled at temperature 1.
    """
    derivable = [(text, judgment.bits) for text, judgment in zip(texts, judgments) if judgment.bits is not None]
    if not derivable:
        return None
    end_of_text_id = tokenizer.end_of_text_id
    documents = [[*tokenizer.encode(text), end_of_text_id] for text, _ in derivable]
    predictions = predict(model, documents, end_of_text_id)
    differences = mean(
        np.array([bits - p.nats.sum() / math.log(2) for p, (_, bits) in zip(predictions, derivable, strict=True)])
    )
    share = len(derivable) / len(texts)
    stderr = None
    if differences.stderr is not None:
        share_stderr = math.sqrt((1 - share) / (share * len(texts))) / math.log(2)  # of log2(share)
        stderr = math.hypot(differences.stderr, share_stderr)
    return Estimate(differences.value - math.log2(share), stderr)
