"""The file `cells.csv` of a study: one row per training run, with its settings and its results.

    variant,size,data,tokens,learning_rate,seed,parameters,...,flops,diverged,loss,floor
    baseline,64x2,c6e7a1,1000000,0.003,0,150000,...,9e11,0,0.7312,0.5430
    muon,64x2,c6e7a1,1000000,0.02,0,150000,...,9e11,0,0.7105,0.5430

`data` identifies the tokens and the tokenizer that a run was trained with: all runs of a table have the same. Runs with
the same size, tokens and seed are a pair: they start from the same seed of the weights and see the same data in the
same order. The first variant is the baseline.
"""

import io
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from lm.errors import UserError, quote
from lm.schema import read_bytes

ADVICE = "train the cells first: lm cells"
_RETRAIN = "train the cells again: lm cells"

_TEXTS = ["variant", "size", "data"]
_COUNTS = ["tokens", "seed", "parameters", "parameters_without_embeddings", "parameters_of_blocks", "diverged"]
_NUMBERS = ["learning_rate", "flops", "loss", "floor"]
COLUMNS = [*_TEXTS, *_COUNTS, *_NUMBERS]
OPTIONAL_COLUMNS = [
    "val_loss",
    "later_name_nats",
    "later_other_nats",
    "wording_nats",
    "repeated_pair_nats",
    "new_pair_nats",
    "seconds",
    "tokens_per_second",
]
_POSITIVE = [
    "tokens",
    "parameters",
    "parameters_without_embeddings",
    "parameters_of_blocks",
    "learning_rate",
    "flops",
    "tokens_per_second",
    "seconds",
]
_MAY_BE_EMPTY = {"loss", "floor", *OPTIONAL_COLUMNS}


def read_cells(path: Path) -> pd.DataFrame:
    """Read and check the table of a study's runs.

    The result has the columns `COLUMNS` and those of `OPTIONAL_COLUMNS` that the file has, as text, integers and
    floats; other columns are kept as text. A loss that is empty or not finite becomes NaN, and so does an unknown
    floor. `loss` and `floor` are in bits per byte, `learning_rate` is the maximum of the schedule, `flops` counts the
    whole training, and `diverged` is 0 or 1.

    Raises:
        UserError: the file cannot be read or has no rows, a column is missing, a value is not a number or out of range,
            a run appears twice, or the runs do not belong together: they were trained on different tokens or on texts
            with different entropies, or models of the same variant and size differ in their number of parameters.
    """
    data = read_bytes(path, ADVICE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with too many values
            cells = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False, index_col=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a table of runs in CSV format, got a damaged file; {ADVICE}") from error
    if missing := [name for name in COLUMNS if name not in cells]:
        raise UserError(
            f"{path}: expected the column {missing[0]}, got {quote(', '.join(map(str, cells.columns)), 300)}; {ADVICE}"
        )
    if cells.empty:
        raise UserError(f"{path}: expected at least one run, got none; {ADVICE}")
    for name in [*_COUNTS, *_NUMBERS, *(name for name in OPTIONAL_COLUMNS if name in cells)]:
        cells[name] = _numbers(path, cells[name])
    for name in _TEXTS:
        _refuse_any(path, cells[name], cells[name].str.strip() == "", "text")
    _check_consistency(path, cells)
    return cells


def _numbers(path: Path, texts: pd.Series) -> pd.Series:
    name = str(texts.name)
    stripped = texts.str.strip()
    values = pd.to_numeric(stripped, errors="coerce").astype(float)
    is_nan = stripped.str.lower().isin(["", "nan"])
    _refuse_any(path, texts, values.isna() & ~is_nan, "a number")
    values = values.where(np.isfinite(values))
    if name not in _MAY_BE_EMPTY:
        _refuse_any(path, texts, values.isna(), "a finite number")
    if name in _POSITIVE:
        _refuse_any(path, texts, values <= 0, "a positive number")
    if name == "diverged":
        _refuse_any(path, texts, ~values.isin([0, 1]), "0 or 1")
    if name in _COUNTS:
        _refuse_any(path, texts, (values < 0) | (values % 1 != 0) | (values > 2**53), "a whole number")
        return values.astype(np.int64)
    return values


def _refuse_any(path: Path, texts: pd.Series, is_wrong: pd.Series, expected: str) -> None:
    if is_wrong.any():
        row = int(np.argmax(is_wrong))
        text = texts.iloc[row]
        raise UserError(f"{path}: run {row + 1}, {texts.name}: expected {expected}, got {quote(text)}; {ADVICE}")


def _check_consistency(path: Path, cells: pd.DataFrame) -> None:
    run = ["variant", "size", "tokens", "learning_rate", "seed"]
    twice = cells.duplicated(run)
    if twice.any():
        values = ", ".join(str(cells[name].iloc[int(np.argmax(twice))]) for name in run)
        raise UserError(f"{path}: expected every run once, got two of {quote(values)}; {ADVICE}")
    if len(data := cells["data"].unique()) > 1:
        raise UserError(
            f"{path}: expected runs on the same tokens, got {quote(data[0])} and {quote(data[1])}; {_RETRAIN}"
        )
    if len(floors := cells["floor"].unique()) > 1:
        got = " and ".join("an unknown one" if np.isnan(floor) else f"{floor:g}" for floor in floors[:2])
        raise UserError(f"{path}: expected runs on the same text, with one entropy, got {got}; {_RETRAIN}")
    for (variant, size), group in cells.groupby(["variant", "size"], sort=False):
        if len(counts := group["parameters"].unique()) > 1:
            raise UserError(
                f"{path}: expected one number of parameters for {quote(f'{variant}, {size}')}, "
                f"got {counts[0]:,} and {counts[1]:,}; {_RETRAIN}"
            )
