"""Make the ablation table and its picture from the table of all runs."""

import argparse
from pathlib import Path

from lm.atomic import make_folder, write_text
from lm.studies.ablation.forest import forest_picture
from lm.studies.ablation.table import markdown, table
from lm.studies.cells_table import read_cells
from stages import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=Path, required=True, help="CSV file with one row per run")
    parser.add_argument("--table", type=Path, required=True, help="Markdown file to write, beside a CSV file")
    parser.add_argument("--picture", type=Path, required=True, help="PNG file to write")
    args = parser.parse_args()

    cells = read_cells(args.cells)
    frame = table(cells)
    for folder in (args.table.parent, args.picture.parent):
        make_folder(folder)
    write_text(args.table, markdown(frame))
    write_text(args.table.with_suffix(".csv"), frame.to_csv(index=False, lineterminator="\n"))
    forest_picture(frame, cells, args.picture)
    print(markdown(frame))


if __name__ == "__main__":
    run_stage(main)
