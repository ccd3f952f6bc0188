"""The evaluation of a trained model, as one flat set of metrics; `lm.evaluation.table` shows them.

What applies depends on the text. Only the built-in stories have a known grammar, and therefore an exact lower bound of
the loss, kinds of tokens, minimal pairs and a judge for samples.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lm.corpus.stories import story_grammar
from lm.evaluation.config import EvaluateConfig
from lm.evaluation.documents import Predictions, predict, split_documents, text_bytes
from lm.evaluation.kinds import KINDS, ReadStory, read_stories, repeated_pairs
from lm.evaluation.minimal_pairs import PAIR_KINDS, minimal_pairs
from lm.evaluation.samples import MISTAKES, Judgment, generate_texts, judge, reverse_divergence, share_of_copies
from lm.evaluation.statistics import Metrics, Reliability, mean, ratio, reliability, wilson_interval
from lm.generation.config import SampleConfig
from lm.model.transformer import TransformerLM
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.files import open_tokens

_FIRST_POSITIONS = 16  # the first group of positions; each further group ends at twice the position


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a model, and how reliable its most probable tokens are; None if its loss is not finite."""

    metrics: Metrics
    reliability: Reliability | None


def evaluate(
    model: TransformerLM, tokenizer: Tokenizer, tokens: Path, config: EvaluateConfig, sample: SampleConfig
) -> Evaluation:
    """Evaluate a model on the val split in the folder `tokens`.

    If its loss is not finite, that is the result: `diverged` is 1, and there are no other metrics of the model.

    Raises:
        UserError: a token file is missing, damaged, or was encoded with a different tokenizer.
    """
    val, facts = open_tokens(tokens, "val", tokenizer.hash)
    documents = split_documents(val, tokenizer.end_of_text_id)
    predictions = predict(model, documents, tokenizer.end_of_text_id)
    finite = all(np.isfinite(prediction.nats).all() for prediction in predictions)
    metrics: Metrics = {"documents": len(documents), "tokens": len(val), "diverged": int(not finite)}
    if not finite:
        return Evaluation(metrics, None)
    sizes = text_bytes(documents, tokenizer)
    metrics |= _document_metrics(documents, predictions, sizes)
    top_choice = reliability(
        np.concatenate([prediction.top_probability for prediction in predictions]),
        np.concatenate([prediction.top_is_right for prediction in predictions]),
    )
    metrics |= {"top_choice_accuracy": top_choice.total_accuracy, "calibration_error": top_choice.error}
    if "entropy_bits" in facts:  # the built-in stories
        stories = read_stories(documents, tokenizer)
        metrics |= _kind_metrics(stories, predictions, sizes)
        if config.pairs_per_kind:
            metrics |= _pair_metrics(model, tokenizer, stories, predictions, config)
        if config.num_samples:
            metrics |= _all_sample_metrics(model, tokenizer, tokens, max(map(len, documents)), config, sample)
    return Evaluation(metrics, top_choice)


def _document_metrics(documents: list[np.ndarray], predictions: list[Predictions], sizes: np.ndarray) -> Metrics:
    """The loss, also by position and on repeated pairs."""
    totals = np.array([prediction.nats.sum() for prediction in predictions])
    lengths = np.array([len(ids) for ids in documents])
    nats = np.concatenate([prediction.nats for prediction in predictions])
    repeated = np.concatenate([repeated_pairs(ids) for ids in documents])
    metrics = ratio(totals, lengths).metrics("nats_per_token")
    metrics |= ratio(totals / math.log(2), sizes).metrics("bits_per_byte")
    for name, chosen in (("repeated_pair", repeated), ("new_pair", ~repeated)):
        metrics |= _group_metrics(name, chosen, nats)
    positions = np.concatenate([np.arange(length) for length in lengths])
    start, stop = 0, _FIRST_POSITIONS
    while start <= positions.max():
        metrics[f"nats_from_token_{start}"] = float(nats[(positions >= start) & (positions < stop)].mean())
        start, stop = stop, 2 * stop
    return metrics


def _kind_metrics(stories: list[ReadStory], predictions: list[Predictions], sizes: np.ndarray) -> Metrics:
    """The exact lower bound of the loss, and what is above it, split by the kind of token."""
    bits = np.array([prediction.nats.sum() for prediction in predictions]) / math.log(2)
    floors = np.array([story.tokens.bits.sum() for story in stories])
    metrics: Metrics = {"floor_bits_per_byte": float(floors.sum() / sizes.sum())}
    metrics |= ratio(bits - floors, sizes).metrics("excess_bits_per_byte")
    metrics |= mean(bits - floors).metrics("forward_divergence_bits")
    nats = np.concatenate([prediction.nats for prediction in predictions])
    floor_nats = np.concatenate([story.tokens.bits for story in stories]) * math.log(2)
    kinds = np.concatenate([story.tokens.kinds for story in stories])
    for index, name in enumerate(KINDS):
        chosen = kinds == index
        if not chosen.any():
            continue
        metrics |= _group_metrics(name, chosen, nats)
        metrics[f"{name}_floor_nats"] = float(floor_nats[chosen].mean())
        excess = np.array(
            [
                (prediction.nats / math.log(2) - story.tokens.bits)[story.tokens.kinds == index].sum()
                for prediction, story in zip(predictions, stories)
            ]
        )
        metrics |= ratio(excess, sizes).metrics(f"{name}_excess_bits_per_byte")
    return metrics


def _pair_metrics(
    model: TransformerLM,
    tokenizer: Tokenizer,
    stories: list[ReadStory],
    predictions: list[Predictions],
    config: EvaluateConfig,
) -> Metrics:
    """How often a story is more probable than the same story with a wrong word."""
    grammar, end_of_text_id = story_grammar(), tokenizer.end_of_text_id
    pairs = []  # of the index of a story and one of its minimal pairs
    for index, story in enumerate(tqdm(stories, "making pairs", unit="story", delay=1, leave=False, disable=None)):
        made = minimal_pairs(grammar, story.text, story.reading, config.pairs_per_kind, config.seed + index)
        pairs += [(index, pair) for pair in made]
    if not pairs:
        return {}
    wrong_documents = [[*tokenizer.encode(pair.wrong), end_of_text_id] for _, pair in pairs]
    wrong_predictions = predict(model, wrong_documents, end_of_text_id, "scoring pairs")
    trials: Counter[str] = Counter()
    successes: Counter[str] = Counter()
    for (index, pair), wrong in zip(pairs, wrong_predictions):
        is_right = bool(predictions[index].nats.sum() < wrong.nats.sum())
        for name in ("minimal_pair_accuracy", f"minimal_pair_accuracy_{pair.kind}"):
            trials[name] += 1
            successes[name] += is_right
    names = ["minimal_pair_accuracy", *(f"minimal_pair_accuracy_{kind}" for kind in PAIR_KINDS)]
    metrics: Metrics = {"minimal_pairs": len(pairs)}
    for name in names:
        if trials[name]:
            metrics |= _share(name, successes[name], trials[name])
    return metrics


def _all_sample_metrics(
    model: TransformerLM,
    tokenizer: Tokenizer,
    tokens: Path,
    longest: int,
    config: EvaluateConfig,
    sample: SampleConfig,
) -> Metrics:
    """Generate texts from the model's own distribution and with the settings of `sample`, and judge them.

    `longest` is the length of the longest val document. A text that is much longer is no story.
    """
    train, _ = open_tokens(tokens, "train", tokenizer.hash)
    copies = {document.tobytes() for document in split_documents(train, tokenizer.end_of_text_id)}
    configured = replace(sample, num_samples=config.num_samples, seed=config.seed, max_new_tokens=longest * 5 // 4)
    own = replace(configured, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    slide = longest > model.config.context_length
    metrics: Metrics = {}
    for prefix, settings in (("samples", own), ("configured_samples", configured)):
        texts = generate_texts(model, tokenizer, settings, slide)
        grammar = story_grammar()
        bar = tqdm(texts, "judging", unit="text", delay=1, leave=False, disable=None)
        judgments = [judge(grammar, text) for text in bar]
        metrics |= _sample_metrics(prefix, texts, judgments)
        metrics[f"{prefix}_in_train"] = share_of_copies(texts, tokenizer, copies)
        if settings is own and (divergence := reverse_divergence(model, tokenizer, texts, judgments)):
            metrics |= divergence.metrics("reverse_divergence_bits")
    return metrics


def _sample_metrics(prefix: str, texts: list[str], judgments: list[Judgment]) -> Metrics:
    """What the grammar says about texts. The names of the metrics start with `prefix`."""
    metrics = _share(f"{prefix}_derivable", sum(j.mistake is None for j in judgments), len(texts))
    metrics |= mean(np.array([j.correct_share for j in judgments])).metrics(f"{prefix}_correct_share")
    mistakes = Counter(judgment.mistake for judgment in judgments)
    metrics |= {f"{prefix}_mistakes_{name}": mistakes[name] / len(texts) for name in MISTAKES}
    metrics[f"{prefix}_distinct"] = len(set(texts)) / len(texts)
    return metrics


def _group_metrics(name: str, chosen: np.ndarray, nats: np.ndarray) -> Metrics:
    """The share of a group of tokens, and their mean loss if there are any."""
    metrics: Metrics = {f"{name}_share": float(chosen.mean())}
    if chosen.any():
        metrics[f"{name}_nats"] = float(nats[chosen].mean())
    return metrics


def _share(name: str, successes: int, trials: int) -> Metrics:
    """A share and its 95% confidence interval."""
    low, high = wilson_interval(successes, trials)
    return {name: successes / trials, f"{name}_low": low, f"{name}_high": high}
