"""The section on the tokenizer."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError
from lm.report.blocks import Block, Facts, Missing, Plot, Section, Span, Table, Tokens
from lm.report.curve import plot
from lm.report.numbers import count, size
from lm.report.run import Run
from lm.tokenizer.tokenizer import Tokenizer

_MAX_TOKENS = 50_000  # of the val split, about 200 kB of text, on which compression is measured
_EXAMPLE_TOKENS = 70
_NUM_LONGEST = 10


def bytes_per_token(tokenizer: Tokenizer, text: str) -> float:
    """UTF-8 bytes of a text per token. The end of a document is a token without bytes.

    Example: 'ab<|endoftext|>' is 2 bytes. If `ab` is a token, these are two tokens, and the result is 1.
    """
    return len(text.replace(END_OF_TEXT, "").encode()) / len(tokenizer.encode(text))


def growth(tokenizer: Tokenizer, text: str) -> list[tuple[int, float]]:
    """Compression as the vocabulary grows: its size, and the bytes per token of `text`.

    BPE learns its merges one after the other, so the first of them are those of a smaller vocabulary. The sizes are
    that of the bytes and special tokens alone, powers of two, and the tokenizer's own.
    """
    smallest = tokenizer.vocab_size - len(tokenizer.merges)
    sizes = [smallest]
    sizes += [1 << power for power in range(9, 32) if smallest < 1 << power < tokenizer.vocab_size]
    sizes += [tokenizer.vocab_size] if tokenizer.merges else []
    return [(total, bytes_per_token(_with_merges(tokenizer, total - smallest), text)) for total in sizes]


def _with_merges(tokenizer: Tokenizer, number: int) -> Tokenizer:
    """The tokenizer with only the first `number` merges."""
    unmade = {left + right for left, right in tokenizer.merges[number:]}
    kept = [token for _, token in sorted(tokenizer.vocab.items()) if token not in unmade]
    return Tokenizer(dict(enumerate(kept)), tokenizer.merges[:number], tokenizer.special_tokens, tokenizer.pattern)


def _finding(run: Run) -> str:
    mean = run.metrics("encode_memmap")["val_bytes_per_token"]
    return f"A token stands for {mean:.2f} bytes of text on average."


def _facts(run: Run) -> list[Block]:
    tokenizer, metrics = run.tokenizer, run.metrics("encode_memmap")
    rows = [
        ("vocabulary", f"{count(tokenizer.vocab_size)} tokens, {count(len(tokenizer.merges))} of them from merges"),
        ("special tokens", ", ".join(tokenizer.special_tokens) or "none"),
        ("pattern", tokenizer.pattern),
        ("vocabulary that the train split uses", f"{metrics['vocabulary_use']:.1%}"),
    ]
    for split in ("train", "val"):
        mean = f"{metrics[f'{split}_bytes_per_token']:.3f} bytes each on average"
        rows.append((split, f"{count(metrics[f'{split}_tokens'])} tokens, {mean}"))
    return [Facts(rows=rows, command="dvc repro encode_memmap")]


def _growth(run: Run) -> list[Block]:
    text = _val_text(run)
    points = growth(run.tokenizer, text)
    means = ", ".join(f"{mean:.2f} with {count(total)} tokens" for total, mean in points)
    return [
        Plot(
            name="bytes-per-token",
            title="Compression as the vocabulary grows",
            figure=plot(lambda axes: _draw_growth(axes, points)),
            alt=f"Bytes per token as the vocabulary grows: {means}",
            note=f"The same merges, cut off at smaller vocabularies, on {_measured(text)}.",
            command="lm report",
        )
    ]


def _draw_growth(axes: Axes, points: Sequence[tuple[int, float]]) -> None:
    axes.plot(*zip(*points), marker=".", color="C0")
    sizes = [total for total, _ in points]
    for (total, mean), following in zip(points, [*sizes[1:], math.inf]):
        if following > 1.9 * total:  # the label of one that is nearer would cover this one's
            axes.annotate(f"{mean:.2f}", (total, mean), xytext=(-4, 4), textcoords="offset points", ha="right")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=6))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12, y=0.12)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="vocabulary size", ylabel="bytes per token")
    axes.grid(alpha=0.3)


def _longest(run: Run) -> list[Block]:
    longest = sorted(run.tokenizer.merges, key=lambda pair: len(b"".join(pair)), reverse=True)[:_NUM_LONGEST]
    rows = [
        (_visible(left + right), count(len(left + right)), f"{_visible(left)} + {_visible(right)}")
        for left, right in longest
    ]
    return [
        Table(
            title="The longest tokens",
            header=("token", "bytes", "made of"),
            rows=rows,
            note="␣ is a space.",
            command="dvc repro train_bpe",
        )
    ]


def _visible(token: bytes) -> str:
    r"""The text of a token, with characters that one cannot see made visible.

    >>> _visible(b" a\n")
    '␣a\\n'
    """
    text = token.decode(errors="replace").replace(" ", "␣")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _example(run: Run) -> list[Block]:
    """The beginning of the first document that is long enough, or of the longest one."""
    vocab, end = run.tokenizer.vocab, run.tokenizer.end_of_text_id
    document = max(run.val_documents, key=lambda ids: min(len(ids), _EXAMPLE_TOKENS))
    tokens = [vocab[token_id] for token_id in document[:_EXAMPLE_TOKENS].tolist() if token_id != end]
    texts = [token.decode(errors="replace") for token in tokens]
    note = "Each piece is one token."
    if any("\n" in text for text in texts):
        note += " ↵ is a line break."
    if any("\ufffd" in text for text in texts):
        note += " \ufffd is a part of a character: the tokens are made of bytes."
    spans = [Span(text=text.replace("\n", "↵\n")) for text in texts]
    title = f"The first {len(spans)} tokens of a document of the val split"
    return [Tokens(title=title, spans=spans, style="pieces", note=note, command="dvc repro encode_memmap")]


def _comparison(run: Run) -> list[Block]:
    title = "Compression beside GPT-2's tokenizer"
    if run.gpt2 is None:
        return [
            Missing(
                title=title,
                message="To compare with GPT-2's tokenizer, supply a folder with its vocab.json and merges.txt: "
                "lm report --gpt2 FOLDER",
            )
        ]
    text = _val_text(run)
    tokenizers = {"this one": run.tokenizer, "GPT-2's": _load_gpt2(run.gpt2)}
    rows = [
        (name, count(tokenizer.vocab_size), f"{bytes_per_token(tokenizer, text):.2f}")
        for name, tokenizer in tokenizers.items()
    ]
    return [
        Table(
            title=title,
            header=("tokenizer", "vocabulary", "bytes per token"),
            rows=rows,
            note=f"Both on {_measured(text)}.",
            command="lm report --gpt2 FOLDER",
        )
    ]


def _load_gpt2(folder: Path) -> Tokenizer:
    """Read GPT-2's own files; its pattern and its special token are not among them."""
    try:
        return Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt", [END_OF_TEXT])
    except UserError as error:
        reason = str(error).partition("; make it with")[0]  # which is right for the tokenizer of the pipeline
        raise UserError(f"--gpt2: expected a folder with GPT-2's vocab.json and merges.txt; {reason}") from error


def _val_text(run: Run) -> str:
    """The text of the first tokens of the val split, with the end-of-text tokens."""
    # Every document has at least one token, so no more documents are needed.
    return run.tokenizer.decode(np.concatenate(run.val_documents[:_MAX_TOKENS])[:_MAX_TOKENS])


def _measured(text: str) -> str:
    measured = size(len(text.replace(END_OF_TEXT, "").encode()))
    return f"{measured} of the val split, counting one token for the end of each document"


TOKENIZER = Section("tokenizer", "Tokenizer", _finding, [_facts, _growth, _example, _longest, _comparison])
