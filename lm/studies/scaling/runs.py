"""The runs that a scaling law is fitted to, and the file that anyone's runs are read from.

parameters,tokens,loss,seed,diverged
1000000,20000000,3.91,0,0
1000000,40000000,3.70,0,0
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from lm.errors import UserError, quote
from lm.schema import read_bytes
from lm.studies.scaling.law import FLOPS_PER_WEIGHT

ADVICE = "give a CSV file with the columns parameters, tokens and loss, separated by commas"

_COLUMNS = ("parameters", "tokens", "loss")
_SMALLEST, _LARGEST = 1e-30, 1e30  # so that no step of a fit leaves the range of floats


@dataclass(frozen=True)
class Runs:
    """Training runs, all arrays (n,) of positive numbers: N, D, and the loss at the end."""

    parameters: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def flops(self) -> np.ndarray:
        """C = 6 N D (n,), which leaves out the scores of attention (Kaplan et al. 2020, section 2.1)."""
        return FLOPS_PER_WEIGHT * self.parameters * self.tokens

    def select(self, chosen: np.ndarray) -> "Runs":
        """The runs at the indices or the True values of an array."""
        return Runs(self.parameters[chosen], self.tokens[chosen], self.loss[chosen])

    def cells(self) -> np.ndarray:
        """The index (n,) of each run's cell; the runs of a cell have the same parameters and tokens."""
        points = np.stack([self.parameters, self.tokens])
        return np.unique(points, axis=1, return_inverse=True)[1].reshape(-1)


class Table(NamedTuple):
    """The runs of a file, and a description of each of those that have no loss to fit."""

    runs: Runs
    left_out: list[str]


def read_runs(path: Path) -> Table:
    """Read runs from a CSV file with the columns `parameters`, `tokens` and `loss`.

    Runs whose loss is empty or not finite are left out, and so are those with 1 in the column `diverged`, if there is
    one. Runs with the same parameters and tokens are repetitions with other seeds. Other columns are ignored.

    Raises:
        UserError: the file cannot be read, a column is missing or appears twice, or a value is not a positive number.
    """
    rows = _read_table(path)
    for name in (*_COLUMNS, "diverged"):
        count = list(rows.columns).count(name)
        if count > 1:
            raise UserError(f"{path}: expected one column {name}, got {count}; delete or rename the others")
        if count == 0 and name in _COLUMNS:
            raise UserError(f"{path}: expected the column {name}, got {quote(', '.join(rows.columns), 300)}; {ADVICE}")
    parameters, tokens = (_numbers(path, rows[name]) for name in ("parameters", "tokens"))
    loss = _numbers(path, rows["loss"], may_be_missing=True)
    diverged = _flags(path, rows["diverged"]) if "diverged" in rows else np.zeros(len(rows), dtype=bool)
    is_usable = np.isfinite(loss) & ~diverged
    left_out = [
        f"run {at + 1} ({'diverged' if diverged[at] else 'no finite loss'})" for at in np.flatnonzero(~is_usable)
    ]
    return Table(Runs(parameters, tokens, loss).select(is_usable), left_out)


def _read_table(path: Path) -> pd.DataFrame:
    """The cells of a table as text, those that are missing at the end of a row as empty text."""
    data = read_bytes(path, ADVICE)
    try:
        # Without the header, because pandas renames a column that appears twice, and does not name a row that is too
        # long.
        lines = pd.read_csv(io.BytesIO(data), header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except pd.errors.EmptyDataError as error:
        raise UserError(f"{path}: expected a table in CSV format, got an empty file; {ADVICE}") from error
    except pd.errors.ParserError as error:
        reason = str(error).rpartition("error: ")[2].strip()
        raise UserError(f"{path}: not a table in CSV format ({reason}); {ADVICE}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; {ADVICE}") from error
    lines = lines.fillna("")
    return lines[1:].reset_index(drop=True).set_axis(lines.iloc[0].str.strip().to_list(), axis=1)


def _numbers(path: Path, texts: pd.Series, *, may_be_missing: bool = False) -> np.ndarray:
    """The values of a column; those that may be missing are NaN or infinite then."""
    stripped = texts.str.strip()
    values = pd.to_numeric(stripped, errors="coerce").to_numpy(dtype=float)
    is_missing = (stripped.str.lower().isin(["", "nan"]) | np.isinf(values)).to_numpy()
    is_wrong = ~is_missing & ~(values > 0)
    if not may_be_missing:
        is_wrong |= is_missing
    if is_wrong.any():
        at = int(np.argmax(is_wrong))
        raise UserError(
            f"{path}: run {at + 1}, {texts.name}: expected a positive number, got {quote(texts.iloc[at])}; correct it"
        )
    is_extreme = ~is_missing & ((values < _SMALLEST) | (values > _LARGEST))
    if is_extreme.any():
        at = int(np.argmax(is_extreme))
        raise UserError(
            f"{path}: run {at + 1}, {texts.name}: expected {_SMALLEST:g} to {_LARGEST:g}, got {quote(texts.iloc[at])}; "
            "correct it"
        )
    return values


def _flags(path: Path, texts: pd.Series) -> np.ndarray:
    """The values of a column of flags; pandas writes 1.0 for 1 where a value of the column is missing."""
    stripped = texts.str.strip().str.lower()
    is_set = stripped.isin(["1", "1.0", "true"])
    is_wrong = ~is_set & ~stripped.isin(["0", "0.0", "false", ""])
    if is_wrong.any():
        at = int(np.argmax(is_wrong))
        raise UserError(f"{path}: run {at + 1}, diverged: expected 0 or 1, got {quote(texts.iloc[at])}; correct it")
    return is_set.to_numpy()
