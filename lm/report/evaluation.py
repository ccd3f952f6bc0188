"""The section on what the model has learned."""

import re
from functools import partial

from lm.corpus.stories import story_grammar
from lm.evaluation.calibration import read_calibration
from lm.evaluation.kinds import KINDS
from lm.evaluation.minimal_pairs import PAIR_KINDS
from lm.evaluation.picture import draw_excess, draw_pairs, draw_positions, draw_reliability
from lm.evaluation.samples import Mistake, judge
from lm.evaluation.statistics import Metrics
from lm.evaluation.table import KIND_NAMES, SAMPLES_HEADER, document_rows, losses_by_position, sample_rows
from lm.generation.text import Sample
from lm.report.blocks import Block, Facts, Plot, Section, Span, Table, Text, Tokens
from lm.report.curve import plot
from lm.report.run import Run

_COMMAND = "dvc repro evaluate"
_MAX_SAMPLES = 4

_EXPECTED: dict[Mistake, str] = {
    "wording": "other wording",
    "first_name": "the first mention of a name",
    "first_other": "the first mention of something other than a name",
    "later_name": "a later mention of a name",
    "later_other": "a later mention of something other than a name",
    "attribute": "a pronoun or another attribute",
    "ending": "the end of the story",
}


def _finding(run: Run) -> str:
    metrics = run.metrics("evaluate")
    if metrics["diverged"]:
        return "The model's loss is not finite, so there is nothing to measure."
    if "excess_bits_per_byte" not in metrics:
        return (
            f"On whole documents, the loss is {metrics['bits_per_byte']:.4f} bits per byte, "
            f"or {metrics['nats_per_token']:.4f} nats per token."
        )
    excess = _excess(metrics)
    most = max(excess, key=lambda kind: excess[kind])
    verb = "accounts" if most == "wording" else "account"
    return (
        f"{_capitalized(KIND_NAMES[most])} {verb} for {excess[most]:.4f} of the "
        f"{metrics['excess_bits_per_byte']:.4f} bits per byte by which the loss is above the entropy of the text."
    )


def _excess(metrics: Metrics) -> dict[str, float]:
    """The excess over the entropy by kind of token, in bits per byte of all text."""
    return {kind: metrics[name] for kind in KINDS if (name := f"{kind}_excess_bits_per_byte") in metrics}


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def _facts(run: Run) -> list[Block]:
    metrics = run.metrics("evaluate")
    if metrics["diverged"]:
        return []
    return [Facts(title="Whole documents of the val split", rows=document_rows(metrics), command=_COMMAND)]


def _by_kind(run: Run) -> list[Block]:
    metrics = run.metrics("evaluate")
    excess = _excess(metrics)
    if not excess:
        return []
    values = ", ".join(f"{KIND_NAMES[kind]} {value:.4f}" for kind, value in excess.items())
    return [
        Plot(
            name="excess",
            title="Loss above the entropy, by kind of token",
            figure=plot(partial(draw_excess, metrics=metrics)),
            alt=f"Bits per byte above the entropy by kind of token: {values}",
            note="The bars sum to the whole distance from the entropy. The lines are one standard error.",
            command=_COMMAND,
        )
    ]


def _minimal_pairs(run: Run) -> list[Block]:
    metrics = run.metrics("evaluate")
    if "minimal_pair_accuracy" not in metrics:
        return []
    shares = {KIND_NAMES[kind]: metrics.get(f"minimal_pair_accuracy_{kind}") for kind in PAIR_KINDS}
    values = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share is not None)
    return [
        Plot(
            name="minimal-pairs",
            title="Minimal pairs: a story and the same story with one wrong word",
            figure=plot(partial(draw_pairs, metrics=metrics)),
            alt="Share of the pairs in which the true story is more probable, by kind of the word: "
            f"all {metrics['minimal_pair_accuracy']:.0%}, {values}",
            note="The lines are 95% confidence intervals. Guessing gives 0.5.",
            command=_COMMAND,
        )
    ]


def _by_position(run: Run) -> list[Block]:
    losses = losses_by_position(run.metrics("evaluate"))
    if not losses:
        return []
    values = ", ".join(f"from token {start} on {loss:.2f}" for start, loss in losses.items())
    return [
        Plot(
            name="positions",
            title="Loss by position in the document",
            figure=plot(partial(draw_positions, metrics=run.metrics("evaluate"))),
            alt=f"Nats per token by position in the document: {values}",
            note="Each group of positions begins where the one before it ends.",
            command=_COMMAND,
        )
    ]


def _calibration(run: Run) -> list[Block]:
    metrics = run.metrics("evaluate")
    if metrics["diverged"]:
        return []
    reliability = read_calibration(run.folder / "metrics" / "calibration.csv")
    error = metrics["calibration_error"]
    return [
        Plot(
            name="calibration",
            title="Calibration of the most probable token",
            figure=plot(partial(draw_reliability, reliability=reliability)),
            alt=f"How often the most probable token is right, by its probability: the mean difference is {error:.4f}",
            note="On the dashed line, the most probable token is right as often as its probability says. "
            "A larger point stands for more tokens.",
            command=_COMMAND,
        )
    ]


def _generated_texts(run: Run) -> list[Block]:
    rows = sample_rows(run.metrics("evaluate"))
    if not rows:
        return []
    return [
        Table(
            title="Generated texts, judged by the grammar",
            header=SAMPLES_HEADER,
            rows=rows,
            note="95% confidence intervals are in parentheses.",
            command=_COMMAND,
        )
    ]


def _samples(run: Run) -> list[Block]:
    samples = run.samples[:_MAX_SAMPLES]
    if run.params.data.source == "stories":
        return [_judged(sample) for sample in samples]
    return [
        Text(title=_title(sample), text=sample.text + ("" if sample.ended else " ..."), command="dvc repro sample")
        for sample in samples
    ]


def _judged(sample: Sample) -> Block:
    """A sample as the built-in grammar reads it, with its first mistake marked."""
    text, judgment = sample.text, judge(story_grammar(), sample.text)
    position = round(judgment.correct_share * len(text))
    start, stop = first_word(text, position)
    if judgment.mistake is None:
        note = "The grammar derives this story: there is no mistake."
    elif position == len(text) and not sample.ended:
        note = "The text was cut off. Up to there, it has no mistake."
    elif position == len(text):
        note = "The only mistake is that the text ends before the story does."
    else:
        note = (
            f"The first mistake comes after {judgment.correct_share:.0%} of the text, "
            f"where the grammar expected {_EXPECTED[judgment.mistake]}."
        )
    spans = [Span(text=text[:start]), Span(text=text[start:stop], mark=True)]
    spans.append(Span(text=text[stop:] + ("" if sample.ended else " ...")))
    return Tokens(
        title=_title(sample),
        spans=[span for span in spans if span.text],
        style="weights",
        note=note,
        command="dvc repro sample",
    )


def first_word(text: str, position: int) -> tuple[int, int]:
    """Where the word or punctuation mark with the character at `position` starts and stops.

    White space counts as the beginning of what follows it.

    Example: in "the big cat", the positions 4 to 6 give (4, 7), and position 7 gives (7, 11).
    """
    for match in re.finditer(r"\s*(\w+|[^\w\s])", text):
        if position < match.end():
            return min(position, match.start(1)), match.end()
    return position, len(text)


def _title(sample: Sample) -> str:
    return f"Prompt “{sample.prompt}”, seed {sample.seed}"


EVALUATION = Section(
    "evaluation",
    "Evaluation",
    _finding,
    [_facts, _by_kind, _minimal_pairs, _by_position, _calibration, _generated_texts, _samples],
)
