"""Write the configuration of every cell: of the ablation and the scaling law, or of the sweep of a study."""

import argparse
from pathlib import Path

from lm import config
from lm.config import StudyParams
from lm.studies.cell import grid_cells, sweep_cells
from lm.studies.plan import write_plan
from stages import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file with the parameters")
    parser.add_argument("--plan", type=Path, required=True, help="folder to write to, with a folder for each grid")
    args = parser.parse_args()
    params = config.load_any(args.params)
    if isinstance(params, StudyParams):
        cells = sweep_cells(params.study)
        write_plan(args.plan / "sweep", config.grid(params, "study"), cells)
        print(f"sweep: {len(cells)} cells planned")
        return
    for section, rate in (("ablate", params.ablate.learning_rate), ("scale", params.scale.learning_rate)):
        grid = config.grid(params, section)
        cells = {name: (cell, rate) for name, cell in grid_cells(grid).items()}
        write_plan(args.plan / section, grid, cells)
        print(f"{section}: {len(cells)} cells planned")


if __name__ == "__main__":
    run_stage(main)
