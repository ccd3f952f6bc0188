import json
import math

import pytest

from lm.config import Params, load_study
from lm.errors import UserError
from lm.studies.cells_table import COLUMNS, read_cells
from lm.studies.collect import collect, grid_runs, sweep_runs
from lm.studies.config import ScaleConfig

GRID = ScaleConfig(
    variant="muon",
    learning_rate=0.01,
    points=["16x1-100", "16x1-200", "32x2-100", "32x2-200"],
    seeds=[1, 2],
    num_evaluations=1,
)
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
}


def test_the_runs_of_a_grid_are_in_the_order_of_the_table():
    names = [run.name for run in grid_runs(GRID, ["muon"])]
    assert names[:3] == ["muon-16x1-100-1", "muon-16x1-100-2", "muon-16x1-200-1"]
    assert len(names) == 8


def test_the_runs_of_a_sweep_use_the_first_seed(project):
    study = load_study(project / "studies/ablation/params.yaml").study
    runs = sweep_runs(study)
    assert len(runs) == len(study.run) * len(study.sweep.points) * len(study.sweep.learning_rates)
    assert {run.seed for run in runs} == {study.seeds[0]}
    assert runs[0].name.endswith(str(study.sweep.learning_rates[0]))


def test_a_table_has_one_row_per_run_and_can_be_read_again(tmp_path):
    runs = grid_runs(GRID, ["muon"])
    for run in runs:
        (tmp_path / f"{run.name}.json").write_text(json.dumps(METRICS))
    diverged = {name: value for name, value in METRICS.items() if name != "document_bits_per_byte"} | {"diverged": 1}
    (tmp_path / f"{runs[-1].name}.json").write_text(json.dumps(diverged))
    table = collect(tmp_path, runs)
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


def test_times_are_in_the_table_where_they_were_recorded(tmp_path):
    (run,) = grid_runs(GRID, ["muon"])[:1]
    (tmp_path / f"{run.name}.json").write_text(json.dumps(METRICS))
    (tmp_path / f"{run.name}.timing.json").write_text(json.dumps({"seconds": 3.0, "tokens_per_second": 50.0}))
    row = collect(tmp_path, [run]).iloc[0]
    assert (row["seconds"], row["tokens_per_second"]) == (3.0, 50.0)


def test_a_missing_cell_is_named(tmp_path):
    with pytest.raises(
        UserError, match="muon-16x1-100-1.json: there is no such file; train the cells first: dvc repro"
    ):
        collect(tmp_path, grid_runs(GRID, ["muon"]))


def test_the_grids_of_the_pipeline_have_names_that_can_be_files(params: Params):
    for grid, variants in ((params.ablate, params.ablate.run), (params.scale, [params.scale.variant])):
        names = [run.name for run in grid_runs(grid, variants)]
        assert len(set(names)) == len(names) and all("/" not in name for name in names)
