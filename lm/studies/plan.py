"""The plan of a grid: a file for each of its runs, with everything that determines the result beside the tokens.

A cell has this file, the tokenizer and the tokens as its only dependencies. It therefore runs again exactly if its own
configuration changes, or code that it runs; and DVC, which checks every dependency of every cell whenever it does
anything, has little to check.
"""

import dataclasses
from pathlib import Path

from lm.atomic import make_folder, write_json
from lm.studies.cell import Cell, configure
from lm.studies.code import PROJECT, code_hash
from lm.studies.config import Grid
from lm.studies.planned_run import PlannedRun


def write_plan(folder: Path, grid: Grid, cells: dict[str, tuple[Cell, float]]) -> None:
    """Write a file NAME.json for each of `cells`, which have their learning rates beside them.

    Raises:
        UserError: a cell cannot be trained, or the folder cannot be written.
    """
    make_folder(folder)
    code = code_hash(PROJECT / "stages/train_cell.py")
    for name, (cell, learning_rate) in cells.items():
        run = configure(grid, cell, learning_rate)
        planned = PlannedRun(code=code, model=run.model, optim=run.optim, train=run.train)
        write_json(folder / f"{name}.json", dataclasses.asdict(planned))
