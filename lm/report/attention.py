"""The section on the attention head that looks back."""

from itertools import groupby
from operator import itemgetter

import numpy as np

from lm.errors import UserError
from lm.evaluation.looking_back import LookingBack, Repetition, attention_weights
from lm.generation.text import TextStream
from lm.report.blocks import Block, Section, Span, Table, Tokens
from lm.report.numbers import count
from lm.report.run import Run
from lm.tokenizer.tokenizer import Tokenizer

_COMMAND = "lm report"
_MAX_EXAMPLES = 3
_MAX_TOKENS = 400  # of the text before an example


def _finding(run: Run) -> str:
    found = run.looking_back
    layer, head = most(found)
    share, even = f"{found.share[layer, head]:.0%}", f"{found.even_share:.0%}"
    return (
        f"Head {head + 1} of layer {layer + 1} looks back most: {share} of its attention is on {_target(run)}, "
        f"compared with {even} if it were spread evenly."
    )


def most(found: LookingBack) -> tuple[int, int]:
    """The layer and the head that look back most; of several that are equal to three digits, the first.

    Raises:
        UserError: nothing in the documents is repeated, or the attention is not finite.
    """
    if not found.num_repetitions:
        raise UserError("Nothing to look back for: the first documents of the val split repeat nothing.")
    if not np.isfinite(found.share).all():
        raise UserError("The model's attention is not finite.")
    layer, head = np.unravel_index(found.share.round(3).argmax(), found.share.shape)
    return int(layer), int(head)


def _is_of_names(run: Run) -> bool:
    return run.params.data.source == "stories"


def _target(run: Run) -> str:
    if _is_of_names(run):
        return "earlier mentions of the name that comes next"
    return "tokens that completed the same pair of tokens before"


def _shares(run: Run) -> list[Block]:
    found = run.looking_back
    most(found)
    num_layers, num_heads = found.share.shape
    header = ["layer", *(f"head {head + 1}" for head in range(num_heads))]
    rows = [[str(layer + 1), *(f"{share:.0%}" for share in found.share[layer])] for layer in range(num_layers)]
    cases = "later mentions of names" if _is_of_names(run) else "pairs of tokens that occur again"
    note = (
        f"The mean share of each head's attention that is on {_target(run)}, at {count(found.num_repetitions)} {cases} "
        f"in {count(len(found.documents))} documents of the val split."
    )
    return [Table(title="How far each head looks back", header=header, rows=rows, note=note, command=_COMMAND)]


def _examples(run: Run) -> list[Block]:
    found = run.looking_back
    layer, head = most(found)
    ids, examples = choose(found, run.tokenizer)
    starts = [example.start for example in examples]
    weights = attention_weights(run.model, ids, starts, run.tokenizer.end_of_text_id)[layer, head].numpy()
    blocks: list[Block] = []
    for example, row in zip(examples, weights, strict=True):
        spans = shade(run, ids, example, row.round(2))
        share = f"{row[list(example.earlier)].sum():.0%}"
        blocks.append(
            Tokens(
                title=f"Before “{spans[-1].text.strip()}”, {share} of the attention is on {_target(run)}",
                spans=spans,
                style="weights",
                note="The more attention a token gets when the model predicts the marked one, the more it is shaded.",
                command=_COMMAND,
            )
        )
    return blocks


def choose(found: LookingBack, tokenizer: Tokenizer) -> tuple[np.ndarray, list[Repetition]]:
    """The first document in which different words are repeated, or else the first with any, and up to three of its
    repetitions: of each word only the last, from the beginning to the end of the document.
    """
    by_document = []
    for ids, repetitions in zip(found.documents, found.repetitions, strict=True):
        last = {tokenizer.decode(ids[one.start : one.stop].tolist()).strip(): one for one in repetitions}
        if len(last) > 1:
            last.pop("", None)  # white space cannot be marked visibly
        by_document.append((ids, sorted(last.values())))
    ids, words = max(by_document, key=lambda pair: min(len(pair[1]), 2))
    chosen = {index * (len(words) - 1) // (_MAX_EXAMPLES - 1) for index in range(_MAX_EXAMPLES)}
    return ids, [words[index] for index in sorted(chosen)]


def shade(run: Run, ids: np.ndarray, example: Repetition, weights: np.ndarray) -> list[Span]:
    """The text before an example, shaded by the weights of its tokens (T - 1,), and the example with a mark."""
    stream = TextStream()  # a character of several tokens belongs to the last one
    texts = [stream.feed(run.tokenizer.decode_bytes([token_id])) for token_id in ids[: example.stop].tolist()]
    texts[-1] += stream.finish()
    first = max(0, example.start - _MAX_TOKENS)
    spans = [Span(text="... ")] if first else []
    shaded = zip(weights[first : example.start].tolist(), texts[first : example.start])
    for weight, group in groupby(shaded, key=itemgetter(0)):
        spans.append(Span(text="".join(text for _, text in group), weight=weight or None))
    return [*spans, Span(text="".join(texts[example.start :]), mark=True)]


ATTENTION = Section("attention", "Attention", _finding, [_shares, _examples])
