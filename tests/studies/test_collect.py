import json
import math
from pathlib import Path

import pytest

from lm.errors import UserError
from lm.studies.cell import Cell
from lm.studies.cells_table import COLUMNS, read_cells
from lm.studies.collect import collect

CELLS = {
    f"muon-{point}-{seed}": Cell(variant="muon", point=point, seed=seed)
    for point in ("16x1-100", "16x1-200", "32x2-100", "32x2-200")
    for seed in (1, 2)
}
METRICS = {
    "num_parameters": 1000,
    "num_parameters_without_embeddings": 700,
    "num_parameters_of_blocks": 500,
    "learning_rate": 0.02,
    "flops": 6e9,
    "diverged": 0,
    "document_bits_per_byte": 1.5,
    "floor_bits_per_byte": 0.125,
    "val_loss": 2.5,
    "later_name_nats": 3.5,
    "step": 7,
    "tokens": 100,
}


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    folder = tmp_path / "tokens"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder


def test_a_table_has_one_row_per_run_and_can_be_read_again(tmp_path, tokens):
    for name in CELLS:
        (tmp_path / f"{name}.json").write_text(json.dumps(METRICS))
    diverged = {name: value for name, value in METRICS.items() if name != "document_bits_per_byte"} | {"diverged": 1}
    (tmp_path / f"{list(CELLS)[-1]}.json").write_text(json.dumps(diverged))
    table = collect(tmp_path, CELLS, tokens)
    assert "tokens_per_second" not in table and set(COLUMNS) <= set(table)
    path = tmp_path / "cells.csv"
    table.to_csv(path, index=False)
    cells = read_cells(path)
    assert len(cells) == 8
    first, last = cells.iloc[0], cells.iloc[-1]
    assert (first["variant"], first["size"], first["tokens"], first["seed"]) == ("muon", "16x1", 100, 1)
    assert (first["parameters"], first["flops"], first["loss"], first["floor"]) == (1000, 6e9, 1.5, 0.125)
    assert first["later_name_nats"] == 3.5
    assert math.isnan(last["loss"]) and last["diverged"] == 1


def test_times_are_in_the_table_where_they_were_recorded(tmp_path, tokens):
    name, cell = next(iter(CELLS.items()))
    (tmp_path / f"{name}.json").write_text(json.dumps(METRICS))
    (tmp_path / f"{name}.timing.json").write_text(json.dumps({"seconds": 1.5, "tokens_per_second": 50.0}))
    row = collect(tmp_path, {name: cell}, tokens).iloc[0]
    assert (row["seconds"], row["tokens_per_second"]) == (
        2.0,
        50.0,
    )  # the run was resumed, and its last process took 1.5 s


def test_a_missing_cell_is_named(tmp_path, tokens):
    with pytest.raises(UserError, match="muon-16x1-100-1.json: there is no such file; train the cells first: lm cells"):
        collect(tmp_path, CELLS, tokens)
