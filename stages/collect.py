"""Collect the results of all cells of a grid in one table."""

import argparse
from pathlib import Path

from lm import config
from lm.atomic import make_folder, write_text
from lm.studies.cell import grid_cells
from lm.studies.collect import collect
from stages import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file with the parameters")
    parser.add_argument("--section", choices=("ablate", "scale", "study"), required=True, help="the grid in that file")
    parser.add_argument("--cells", type=Path, required=True, help="folder with the results of the cells")
    parser.add_argument("--tokens", type=Path, required=True, help="folder that the stage encode_memmap wrote")
    parser.add_argument("--table", type=Path, required=True, help="CSV file to write, with one row per cell")
    args = parser.parse_args()
    grid = config.grid(config.load_any(args.params), args.section)
    table = collect(args.cells, grid_cells(grid), args.tokens)
    make_folder(args.table.parent)
    write_text(args.table, table.to_csv(index=False, lineterminator="\n"))
    print(f"{args.table}: {len(table)} runs, {table['diverged'].sum()} of them diverged")


if __name__ == "__main__":
    run_stage(main)
