"""The results of a finished pipeline as text: metrics, the ablation table, one sample and the paths of the pictures."""

import json
from pathlib import Path

from lm.errors import UserError


def report(metrics: Path, samples: Path) -> str:
    """Return the text that `make` prints at the end.

    Args:
        metrics: the folder of train.json, ablation.md and the pictures.
        samples: the folder of samples.json.

    Raises:
        UserError: a file is missing because the pipeline has not finished, or is damaged.
    """
    try:
        train = json.loads((metrics / "train.json").read_text(encoding="utf-8"))
        table = (metrics / "ablation.md").read_text(encoding="utf-8")
        sample = json.loads((samples / "samples.json").read_text(encoding="utf-8"))[0]["text"]
        width = max(map(len, train))
        lines = [
            f"  {name:{width}}  {value:{',' if isinstance(value, int) else '.5g'}}" for name, value in train.items()
        ]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: missing; run the pipeline first: dvc repro") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{metrics} or {samples}: a result is damaged ({error}); make the results again with: dvc repro"
        ) from error
    pictures = [f"  {path}" for path in sorted(metrics.glob("*.png"))]
    return "\n".join(["metrics", *lines, "", "ablation", table, "sample", sample, "", "pictures", *pictures])
