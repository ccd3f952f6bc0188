"""What a section of the report consists of. The templates turn each kind of block into HTML and Markdown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.figure import Figure

from lm.report.run import Run


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of a section.

    Attributes:
        title: A heading, empty for none.
        note: One or two sentences below the block on how to read it.
        command: The command that makes its numbers again.
    """

    title: str = ""
    note: str = ""
    command: str = ""

    @property
    def kind(self) -> str:
        """The name of the macro that renders the block."""
        return type(self).__name__.lower()


@dataclass(frozen=True, kw_only=True)
class Facts(Block):
    """Names and values."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Table(Block):
    """A table whose first column is text and whose others are numbers, if `numeric`."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: bool = True


@dataclass(frozen=True, kw_only=True)
class Plot(Block):
    """A figure. `name` is that of its PNG file; `alt` says what the figure shows to people who do not see it."""

    name: str
    alt: str
    figure: Figure


@dataclass(frozen=True, kw_only=True)
class Text(Block):
    """Text from a corpus or a model."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Span:
    """A piece of text. `weight`, from 0 to 1, is how strongly it is shaded; a `mark` sets it off from the rest."""

    text: str
    weight: float | None = None
    mark: bool = False


@dataclass(frozen=True, kw_only=True)
class Tokens(Block):
    """Text in pieces.

    `pieces` gives neighbors different colors, so that one sees where they end; `weights` shades them.
    """

    spans: Sequence[Span]
    style: Literal["pieces", "weights"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer in the drawing of a model: its name, the shape of its output, and its number of parameters.

    With `residual`, its layers are drawn beside a line from its input to its output, where both are added.
    """

    name: str
    shape: str = ""
    parameters: int = 0
    layers: Sequence["Layer"] = ()
    residual: bool = False


@dataclass(frozen=True, kw_only=True)
class Diagram(Block):
    """A model as boxes within boxes, from its input to its output."""

    layers: Sequence[Layer]


@dataclass(frozen=True, kw_only=True)
class Missing(Block):
    """What the report cannot show, and the command that makes it."""

    message: str


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Attributes:
        name: The name by which the page's table of contents links to it.
        title: Its heading.
        finding: Returns the one sentence that the section shows.
        blocks: Functions that each return blocks. If one raises UserError because a file is missing, the others are
            shown all the same.
    """

    name: str
    title: str
    finding: Callable[[Run], str]
    blocks: Sequence[Callable[[Run], Sequence[Block]]]
