"""The calibration of a model as a CSV file, which DVC plots and the report shows.

    probability,accuracy,weight
    0.26,0.31,0.04
    0.93,0.91,0.2

A row is a bin of `lm.evaluation.statistics.Reliability`.
"""

import csv
import io
from pathlib import Path

import numpy as np

from lm.atomic import write_text
from lm.errors import UserError
from lm.evaluation.statistics import Reliability
from lm.schema import read_bytes

_COLUMNS = ("probability", "accuracy", "weight")


def write_calibration(reliability: Reliability | None, path: Path) -> None:
    """Write how reliable a model's most probable tokens are; without a finite loss, the table has no rows."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    if reliability is not None:
        bins = zip(reliability.probability, reliability.accuracy, reliability.weight)
        writer.writerows([f"{value:.6g}" for value in values] for values in bins)
    write_text(path, text.getvalue())


def read_calibration(path: Path) -> Reliability:
    """Read what `write_calibration` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    advice = "make it with: dvc repro evaluate"
    data = read_bytes(path, advice)
    try:
        table = csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True)
        rows = [[float(row[name]) for name in _COLUMNS] for row in table]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: not a table of {', '.join(_COLUMNS)}; {advice}") from error
    if not all(0 <= value <= 1 for row in rows for value in row):
        raise UserError(f"{path}: expected shares from 0 to 1; {advice}")
    return Reliability(*np.array(rows).reshape(-1, len(_COLUMNS)).T)
