import dataclasses

import pytest

from lm import config
from lm.config import Params
from lm.errors import UserError
from lm.studies.cell import Cell, configure, grid_cells
from lm.studies.plan import write_plan
from lm.studies.planned_run import read_planned_run


def test_a_planned_run_is_read_as_it_was_planned(params: Params, tmp_path):
    grid = config.grid(params, "ablate")
    cells = grid_cells(grid)
    write_plan(tmp_path / "plan", grid, {name: (cell, 0.02) for name, cell in cells.items()})
    assert {path.stem for path in (tmp_path / "plan").iterdir()} == set(cells)
    for name, cell in cells.items():
        assert read_planned_run(tmp_path / f"plan/{name}.json") == configure(grid, cell, 0.02)


def test_a_new_variant_leaves_the_other_files_as_they_are(params: Params, tmp_path):
    grid = config.grid(params, "ablate")
    larger = dataclasses.replace(grid, run=[*grid.run, "muon"])
    for folder, planned in (("before", grid), ("after", larger)):
        write_plan(tmp_path / folder, planned, {name: (cell, 0.01) for name, cell in grid_cells(planned).items()})
    for path in (tmp_path / "before").iterdir():
        assert (tmp_path / "after" / path.name).read_bytes() == path.read_bytes()


def test_a_file_that_is_missing_or_damaged_is_named(params: Params, tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match="x.json: there is no such file; make it with: dvc repro, or lm cells"):
        read_planned_run(path)
    path.write_text('{"code": "0"}')
    with pytest.raises(UserError, match="x.json: model: missing key, expected a section of keys; make it with"):
        read_planned_run(path)


def test_a_cell_that_cannot_be_trained_is_named(params: Params, tmp_path):
    grid = config.grid(params, "ablate")
    cell = Cell(variant="baseline", point="33x1-153600", seed=1)
    with pytest.raises(UserError, match="the cell baseline-33x1-153600-1: num_heads: rope needs an even"):
        write_plan(tmp_path, grid, {"x": (cell, 0.01)})
