"""The report of a run: its sections in the order of the pipeline, and the files that it is written to."""

from pathlib import Path

from lm.atomic import make_folder, write_text
from lm.report.ablation import ABLATION
from lm.report.attention import ATTENTION
from lm.report.blocks import Missing
from lm.report.data import DATA
from lm.report.environment import ENVIRONMENT
from lm.report.evaluation import EVALUATION
from lm.report.model import MODEL
from lm.report.page import Report, fill
from lm.report.run import Run
from lm.report.scaling import SCALING
from lm.report.tokenizer import TOKENIZER
from lm.report.training import SAMPLES, TRAINING

SECTIONS = (DATA, TOKENIZER, MODEL, TRAINING, EVALUATION, ATTENTION, SAMPLES, ABLATION, SCALING)


def make_report(run: Run) -> Report:
    """The report of a run. The environment belongs to it only with times, because it differs between machines."""
    return fill(run, "A language model from scratch", [*SECTIONS, ENVIRONMENT] if run.timing else SECTIONS)


def write_report(report: Report, html: Path) -> None:
    """Write a report as an HTML file, and beside it as Markdown with a folder of PNG files."""
    make_folder(html.parent)
    write_text(html, report.html())
    report.write_markdown(html.with_suffix(".md"))


def summary(report: Report) -> str:
    """The findings of a report as text for the console."""
    findings = {section.title: section.finding for section in report.sections}
    for section in report.sections:
        if not section.finding and all(isinstance(block, Missing) for block in section.blocks):
            findings[section.title] = "not available yet"
    width = max(map(len, findings))
    return "\n".join(f"{title:{width}}  {finding}" for title, finding in findings.items() if finding)
