"""Collect the results of all cells of a grid in one table, the file that `lm.studies.cells_table` reads."""

import hashlib
from pathlib import Path

import pandas as pd

from lm.schema import read_bytes, read_json
from lm.studies.cell import Cell
from lm.studies.cells_table import ADVICE, OPTIONAL_COLUMNS
from lm.studies.config import parse_point


def collect(folder: Path, cells: dict[str, Cell], tokens: Path) -> pd.DataFrame:
    """One row per cell, from the files NAME.json and, where there is one, NAME.timing.json in `folder`.

    The loss is that of whole documents in bits per byte. It is empty if it is not finite. `data` identifies the token
    files in the folder `tokens`, with the tokenizer that encoded them. `seconds` are those of the training steps at the
    measured rate, so that an interruption does not count.

    Raises:
        UserError: a file is missing or damaged.
    """
    data = hashlib.sha256(read_bytes(tokens / "manifest.json", "make it with: dvc repro encode_memmap")).hexdigest()
    rows = []
    for name, cell in cells.items():
        metrics = read_json(folder / f"{name}.json", dict[str, float], ADVICE)
        timing_path = folder / f"{name}.timing.json"
        timing = read_json(timing_path, dict[str, float], ADVICE) if timing_path.exists() else {}
        if "tokens_per_second" in timing:
            timing["seconds"] = metrics["tokens"] / timing["tokens_per_second"]
        point = parse_point(cell.point)
        rows.append(
            {
                "data": data[:12],
                "variant": cell.variant,
                "size": point.size,
                "tokens": point.tokens,
                "learning_rate": metrics.get("learning_rate"),
                "seed": cell.seed,
                "parameters": metrics.get("num_parameters"),
                "parameters_without_embeddings": metrics.get("num_parameters_without_embeddings"),
                "parameters_of_blocks": metrics.get("num_parameters_of_blocks"),
                "flops": metrics.get("flops"),
                "diverged": metrics.get("diverged"),
                "loss": metrics.get("document_bits_per_byte"),
                "floor": metrics.get("floor_bits_per_byte"),
                **{column: metrics.get(column, timing.get(column)) for column in OPTIONAL_COLUMNS},
            }
        )
    table = pd.DataFrame(rows)
    for name in ("parameters", "parameters_without_embeddings", "parameters_of_blocks", "diverged"):
        table[name] = table[name].astype("Int64")  # whole numbers, also where one is missing
    unknown = [name for name in OPTIONAL_COLUMNS if name in table and table[name].isna().all()]
    return table.drop(columns=unknown)
