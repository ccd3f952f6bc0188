"""The report as GitHub's Markdown; text from a corpus or a model stays text."""

import re
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from lm.report.blocks import Layer, Span, Tokens
from lm.report.numbers import count

# Everywhere, and at the beginning of a line, where it would make a heading, a list or a quotation.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&]|^[#+=-]|^\d+(?=[.)] ))", re.MULTILINE)


def render(title: str, sections: Sequence[object], pictures: str) -> str:
    """The report in Markdown.

    Args:
        title: The heading.
        sections: The sections, with their blocks.
        pictures: The folder of the PNG files, relative to the file of the report.
    """
    environment = Environment(
        loader=PackageLoader("lm.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"text": text, "cell": cell, "quoted": quoted, "spans": spans, "outline": outline}
    written = environment.get_template("report.md").render(title=title, sections=sections, pictures=pictures)
    return re.sub(r"\n{3,}", "\n\n", written).strip() + "\n"


def text(value: str) -> str:
    """Text in which nothing is markup.

    >>> text("a <b> *c*")
    'a \\\\<b\\\\> \\\\*c\\\\*'
    """
    return _SPECIAL.sub(lambda match: match[0] + "\\" if match[0].isdigit() else "\\" + match[0], value)


def cell(value: str) -> str:
    """Text for a cell of a table, in one line."""
    return text(" ".join(value.split()))


def quoted(value: str) -> str:
    """A quotation that keeps its lines."""
    return "\n".join(f"> {text(line)}  " for line in value.splitlines())


def spans(block: Tokens) -> str:
    """Tokens, separated by dots; what is marked is bold. Weights are left out."""
    separator = " · " if block.style == "pieces" else ""
    return "> " + separator.join(map(_span, block.spans)).replace("\n", "  \n> ")


def _span(span: Span) -> str:
    """The text, in bold if it is marked; bold text must not begin or end with white space."""
    inner = span.text.strip()
    if not span.mark or not inner:
        return text(span.text)
    before, after = span.text.split(inner, 1)
    return f"{before}**{text(inner)}**{after}"


def outline(layers: Sequence[Layer], depth: int = 0) -> str:
    """Layers as a nested list."""
    lines = []
    for layer in layers:
        facts = ", ".join(
            filter(None, (layer.shape, f"{count(layer.parameters)} parameters" if layer.parameters else ""))
        )
        lines.append(f"{'  ' * depth}- {text(layer.name)}" + (f": {text(facts)}" if facts else ""))
        if layer.layers:
            lines.append(outline(layer.layers, depth + 1))
    return "\n".join(lines)
