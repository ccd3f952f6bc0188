"""The evaluation of a model as tables in GitHub's Markdown."""

from collections.abc import Sequence
from itertools import zip_longest

from lm.evaluation.kinds import KINDS
from lm.evaluation.minimal_pairs import PAIR_KINDS
from lm.evaluation.statistics import Metrics

KIND_NAMES = {
    "wording": "wording",
    "first_name": "first mentions of names",
    "first_other": "first mentions of other things",
    "later_name": "later mentions of names",
    "later_other": "later mentions of other things",
    "attribute": "pronouns and other attributes",
    "ending": "the end of the story",
}

SAMPLES_HEADER = ("generated texts", "at temperature 1", "with the settings of the stage sample")


def tables(metrics: Metrics) -> str:
    """All tables that apply, and a sentence for each part that does not."""
    if metrics["diverged"]:
        return "The model's loss is not finite, so there is nothing else to measure.\n"
    parts = [_markdown(("whole documents", "value"), document_rows(metrics)), _groups(metrics)]
    if "floor_bits_per_byte" not in metrics:
        parts.append(
            "The grammar of this text is not known, so there is no exact lower bound of the loss, and there are no "
            "kinds of tokens, minimal pairs and judged samples.\n"
        )
        return "\n".join(parts)
    parts.append(_kinds(metrics))
    pairs = _pairs(metrics)
    parts.append(pairs or "There are no minimal pairs: evaluate.pairs_per_kind is 0, or the stories are too short.\n")
    samples = sample_rows(metrics)
    parts.append(
        _markdown(SAMPLES_HEADER, samples) if samples else "There are no judged samples: evaluate.num_samples is 0.\n"
    )
    return "\n".join(parts)


def document_rows(metrics: Metrics) -> list[tuple[str, str]]:
    """The loss on whole documents and, where it is known, its distance from the entropy."""
    rows = [
        ("documents", f"{metrics['documents']:,.0f}"),
        ("tokens", f"{metrics['tokens']:,.0f}"),
        ("nats per token", _with_stderr(metrics, "nats_per_token")),
        ("bits per byte", _with_stderr(metrics, "bits_per_byte")),
    ]
    if "floor_bits_per_byte" in metrics:
        rows += [
            ("the entropy of the text, bits per byte", f"{metrics['floor_bits_per_byte']:.4f}"),
            ("above the entropy, bits per byte", _with_stderr(metrics, "excess_bits_per_byte")),
            ("KL(stories ‖ model), bits per story", _with_stderr(metrics, "forward_divergence_bits", 1)),
        ]
    if "reverse_divergence_bits" in metrics:
        rows.append(("KL(model ‖ stories), bits per story", _with_stderr(metrics, "reverse_divergence_bits", 1)))
    rows += [
        ("most probable token is right", f"{metrics['top_choice_accuracy']:.1%}"),
        ("calibration error of the most probable token", f"{metrics['calibration_error']:.4f}"),
    ]
    return rows


def losses_by_position(metrics: Metrics) -> dict[int, float]:
    """The loss of each group of positions in the document, in nats per token, by the first position of the group."""
    prefix = "nats_from_token_"
    return {int(name.removeprefix(prefix)): metrics[name] for name in metrics if name.startswith(prefix)}


def _groups(metrics: Metrics) -> str:
    """The loss of groups of tokens that every text has."""
    rows = [
        (label, f"{metrics[f'{name}_share']:.1%}", _number(metrics, f"{name}_nats"))
        for name, label in (
            ("repeated_pair", "completes a pair that the document already has"),
            ("new_pair", "all others"),
        )
    ]
    losses = losses_by_position(metrics)
    for (start, loss), stop in zip_longest(losses.items(), list(losses)[1:]):
        where = f"{start} to {stop - 1}" if stop else f"from {start} on"
        rows.append((f"position {where}", "", f"{loss:.4f}"))
    return _markdown(("tokens", "share", "nats per token"), rows)


def _kinds(metrics: Metrics) -> str:
    rows = [
        (
            KIND_NAMES[kind],
            f"{metrics[f'{kind}_share']:.1%}",
            f"{metrics[f'{kind}_nats']:.4f}",
            f"{metrics[f'{kind}_floor_nats']:.4f}",
            _with_stderr(metrics, f"{kind}_excess_bits_per_byte"),
        )
        for kind in KINDS
        if f"{kind}_nats" in metrics
    ]
    header = ("kind of token", "share", "nats per token", "exact minimum", "above it, bits per byte of all text")
    return _markdown(header, rows)


def _pairs(metrics: Metrics) -> str:
    rows = [
        (label, _with_interval(metrics, name))
        for name, label in (
            ("minimal_pair_accuracy", "all"),
            *((f"minimal_pair_accuracy_{kind}", KIND_NAMES[kind]) for kind in PAIR_KINDS),
        )
        if name in metrics
    ]
    return _markdown(("minimal pairs", "the true story is more probable"), rows) if rows else ""


def sample_rows(metrics: Metrics) -> list[tuple[str, ...]]:
    """What the grammar says about generated texts; the columns are those of `SAMPLES_HEADER`, or there are no rows."""
    columns = [prefix for prefix in ("samples", "configured_samples") if f"{prefix}_derivable" in metrics]
    if not columns:
        return []
    rows = [
        ("derived completely", *(_with_interval(metrics, f"{column}_derivable") for column in columns)),
        (
            "share of a text before its first mistake",
            *(_percent(metrics, f"{column}_correct_share") for column in columns),
        ),
    ]
    rows += [
        (f"first mistake: {label}", *(_percent(metrics, f"{column}_mistakes_{kind}") for column in columns))
        for kind, label in KIND_NAMES.items()
    ]
    rows += [
        ("also in the train split", *(_percent(metrics, f"{column}_in_train") for column in columns)),
        ("distinct", *(_percent(metrics, f"{column}_distinct") for column in columns)),
    ]
    return rows


def _markdown(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _number(metrics: Metrics, name: str) -> str:
    return f"{metrics[name]:.4f}" if name in metrics else ""


def _percent(metrics: Metrics, name: str) -> str:
    return f"{metrics[name]:.1%}"


def _with_stderr(metrics: Metrics, name: str, digits: int = 4) -> str:
    stderr = metrics.get(f"{name}_stderr")
    return f"{metrics[name]:.{digits}f}" + (f" ± {stderr:.{digits}f}" if stderr is not None else "")


def _with_interval(metrics: Metrics, name: str) -> str:
    return f"{metrics[name]:.1%} ({metrics[f'{name}_low']:.1%} to {metrics[f'{name}_high']:.1%})"
