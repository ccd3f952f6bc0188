"""The section on the text that the pipeline starts with."""

from lm.report.blocks import Block, Facts, Section, Text
from lm.report.numbers import count, size
from lm.report.run import Run

_SOURCES = {
    "stories": "the built-in stories",
    "tinystories": "TinyStories",
    "openwebtext": "a sample of OpenWebText",
    "files": "your own files",
}
_EXCERPT_CHARACTERS = 1200


def _finding(run: Run) -> str:
    metrics = run.metrics("download")
    text = f"The model learns from {size(metrics['train_bytes'])} of {_SOURCES[run.params.data.source]}"
    if "entropy_bits_per_byte" not in metrics:
        return text + "."
    entropy = metrics["entropy_bits_per_byte"]
    return f"{text}, whose entropy is {entropy:.4f} bits per byte: on average, no model can have a lower loss."


def _facts(run: Run) -> list[Block]:
    metrics = run.metrics("download")
    rows = [("source", f"{run.params.data.source}, seed {run.params.data.seed}")]
    for split in ("train", "val"):
        documents, text_bytes = metrics[f"{split}_documents"], metrics[f"{split}_bytes"]
        mean = f", {count(text_bytes / documents)} bytes each on average" if documents else ""
        rows.append((split, f"{count(documents)} documents, {size(text_bytes)}{mean}"))
    if "entropy_bits_per_byte" in metrics:
        rows.append(("entropy", f"{metrics['entropy_bits_per_byte']:.4f} bits per byte"))
    return [Facts(rows=rows, command="dvc repro download")]


def _excerpt(run: Run) -> list[Block]:
    text = run.val_text(0)
    shown = text if len(text) <= _EXCERPT_CHARACTERS else text[:_EXCERPT_CHARACTERS] + " ..."
    return [Text(title="The first document of the val split", text=shown, command="dvc repro download")]


DATA = Section("data", "Data", _finding, [_facts, _excerpt])
