"""The report as one HTML file, and as Markdown with PNG files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lm.atomic import make_folder, write_text
from lm.errors import UserError
from lm.pictures import save_figure, svg
from lm.report import markdown
from lm.report.blocks import Block, Missing, Plot, Section
from lm.report.numbers import count
from lm.report.run import Run


@dataclass(frozen=True)
class FilledSection:
    """A section with the contents for one run."""

    name: str
    title: str
    finding: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """A report that is ready to be written. `title` is its heading."""

    title: str
    sections: Sequence[FilledSection]

    def html(self) -> str:
        """The page. It loads nothing, and contains no script."""
        environment = Environment(
            loader=PackageLoader("lm.report"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {"count": count, "breakable": _breakable}
        template = environment.get_template("report.html")
        return template.render(title=self.title, sections=self.sections, svg=_svg)

    def write_markdown(self, path: Path) -> None:
        """Write the report for GitHub, with its figures as PNG files in a folder of the same name."""
        pictures = path.with_suffix("")
        make_folder(pictures)
        for block in (block for section in self.sections for block in section.blocks):
            if isinstance(block, Plot):
                save_figure(block.figure, pictures / f"{block.name}.png")
        write_text(path, markdown.render(self.title, self.sections, pictures.name))


def fill(run: Run, title: str, sections: Sequence[Section]) -> Report:
    """Make a report of a run; what a section lacks is said in its place."""
    return Report(title, [_fill(section, run) for section in sections])


def _fill(section: Section, run: Run) -> FilledSection:
    blocks: list[Block] = []
    finding = ""
    try:
        finding = section.finding(run)
    except UserError as error:
        blocks.append(_missing(error, run))
    for make in section.blocks:
        try:
            blocks += make(run)
        except UserError as error:
            missing = _missing(error, run)
            if missing not in blocks:
                blocks.append(missing)
    return FilledSection(section.name, section.title, finding, blocks)


def _missing(error: UserError, run: Run) -> Missing:
    """What is missing, without the path of the project."""
    return Missing(message=str(error).replace(f"{run.folder}/", ""))


def _breakable(name: str) -> Markup:
    """A name that may continue on the next line of a narrow page, after a dot or an underscore.

    >>> _breakable("model.d_model")
    Markup('model.<wbr>d_<wbr>model')
    """
    return Markup(re.sub(r"(?<=\w[._])(?=\w)", "<wbr>", escape(name)))


def _svg(block: Plot) -> Markup:
    return Markup(svg(block.figure, block.name, block.alt))
