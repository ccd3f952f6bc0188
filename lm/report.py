"""The results of a finished pipeline as text: metrics, the tables, one sample and the paths of the pictures."""

from pathlib import Path

from lm.errors import UserError
from lm.evaluation.table import tables
from lm.generation.text import Sample
from lm.schema import read_bytes, read_json


def report(metrics: Path, samples: Path) -> str:
    """Return the text that `make` prints at the end.

    Args:
        metrics: the folder of train.json, evaluation.json, ablation.md, scaling.md and the pictures.
        samples: the folder of samples.json.

    Raises:
        UserError: a file is missing because the pipeline has not finished, or it is damaged.
    """
    advice = "run the pipeline first: dvc repro"
    train = read_json(metrics / "train.json", dict[str, float], advice)
    try:
        evaluation = tables(read_json(metrics / "evaluation.json", dict[str, float], advice))
    except KeyError as error:
        raise UserError(f"{metrics / 'evaluation.json'}: has no {error.args[0]}; {advice}") from error
    ablation, scaling = (
        read_bytes(metrics / name, advice).decode(errors="replace") for name in ("ablation.md", "scaling.md")
    )
    written = read_json(samples / "samples.json", list[Sample], advice)
    if not written:
        raise UserError(f"{samples / 'samples.json'}: contains no sample; {advice}")
    width = max(map(len, train), default=0)
    lines = [f"  {name:{width}}  {value:{',.0f' if value.is_integer() else '.5g'}}" for name, value in train.items()]
    pictures = [f"  {path}" for path in sorted(metrics.glob("*.png"))]
    parts = ["evaluation", evaluation, "ablation", ablation, "scaling", scaling]
    return "\n".join(["metrics", *lines, "", *parts, "sample", written[0].text, "", "pictures", *pictures])
