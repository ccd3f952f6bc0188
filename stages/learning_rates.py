"""Choose the learning rates of all cells from the sweep, and write the configuration of every cell."""

import argparse
from pathlib import Path

from lm import config
from lm.atomic import make_folder, write_json, write_text
from lm.studies.cell import grid_cells, sweep_cells
from lm.studies.collect import collect
from lm.studies.plan import write_plan
from lm.studies.sweep import choose_learning_rates, sweep_picture
from stages import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file with the parameters")
    parser.add_argument("--cells", type=Path, required=True, help="folder with the results of the sweep's runs")
    parser.add_argument("--tokens", type=Path, required=True, help="folder that the stage encode_memmap wrote")
    parser.add_argument("--table", type=Path, required=True, help="CSV file to write, with one row per run")
    parser.add_argument("--learning-rates", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--plan", type=Path, required=True, help="folder to write the configurations of all cells to")
    parser.add_argument("--picture", type=Path, required=True, help="PNG file to write")
    args = parser.parse_args()
    params = config.load_study(args.params)
    study, grid = params.study, config.grid(params, "study")
    planned = sweep_cells(study)
    table = collect(args.cells, {name: cell for name, (cell, _) in planned.items()}, args.tokens)
    # The results hold the rates after the multiplication by `learning_rate_scale`, and `configure` multiplies again.
    table["learning_rate"] = [rate for _, rate in planned.values()]
    rates = choose_learning_rates(table, study.points)
    for path in (args.table, args.learning_rates, args.picture):
        make_folder(path.parent)
    write_text(args.table, table.to_csv(index=False, lineterminator="\n"))
    write_json(args.learning_rates, rates)
    cells = grid_cells(grid)
    write_plan(args.plan, grid, {name: (cell, rates[cell.variant][cell.point]) for name, cell in cells.items()})
    sweep_picture(table, args.picture)
    edges = min(study.sweep.learning_rates), max(study.sweep.learning_rates)
    for variant, by_point in rates.items():
        shown = sorted(set(by_point.values()))
        at_edge = ", at the edge of the sweep" if set(shown) & set(edges) else ""
        print(f"{variant}: {', '.join(f'{rate:g}' for rate in shown)}{at_edge}")


if __name__ == "__main__":
    run_stage(main)
