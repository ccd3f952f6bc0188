"""Figures as files and as parts of a web page, drawn without a display.

One figure becomes a PNG file for GitHub and SVG for a page: its text is text that can be selected, and its colors are
variables of the page's style sheet, so that they follow the light and the dark mode.
"""

import io
import re
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TABLEAU_COLORS, to_hex
from matplotlib.figure import Figure

from lm.atomic import atomic_write

# What the style sheet calls the colors of matplotlib: C0 to C9, axes and text, grids, and what is behind a legend.
_VARIABLES = {to_hex(color): f"var(--c{index})" for index, color in enumerate(TABLEAU_COLORS.values())}
_VARIABLES |= {"#000000": "var(--text)", "#b0b0b0": "var(--border)", "#cccccc": "var(--border)"}
_VARIABLES |= {"#ffffff": "var(--card)", "#808080": "var(--muted)"}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, completely or not at all."""
    with atomic_write(path) as file:
        # Without matplotlib's version in the metadata, the same run gives the same file. savefig would draw twice.
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})


def svg(figure: Figure, name: str, description: str) -> str:
    """Return a figure as an SVG element for a page that has several of them.

    Args:
        figure: The figure.
        name: A name that no other figure of the page has; ids within the element begin with it.
        description: What the figure shows, for people who do not see it.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "svg.id": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")  # it takes half of the time, and is kept for the next file
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Matplotlib numbers the groups of every figure from 1. Only clip paths and markers are referred to.
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda match: _VARIABLES.get(match[0], match[0]), text)
    # Without fixed sizes and style attributes, which a server's Content-Security-Policy would have to allow.
    text = re.sub(r'(?<=<svg )(.*?) width="[^"]+" height="[^"]+"', r"\1", text, count=1)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' style="([^"]*)"', lambda match: _attributes(match[1]), text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1)


def _attributes(style: str) -> str:
    """The declarations of a style attribute as attributes of their own, without the font, which is the page's.

    >>> _attributes("fill: none; stroke-width: 0.8")
    ' fill="none" stroke-width="0.8"'
    """
    declarations = [declaration.split(": ", 1) for declaration in style.split("; ")]
    return "".join(f' {name}="{value}"' for name, value in declarations if name != "font-family")
