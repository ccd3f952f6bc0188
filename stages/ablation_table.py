"""Make the ablation table and its picture from the results of all cells."""

import argparse
import csv
import io
from pathlib import Path
from typing import Any

from lm import config
from lm.atomic import make_folder, write_text
from lm.errors import UserError, exit_cleanly
from lm.pictures import comparison_picture
from lm.schema import read_bytes, read_json
from lm.studies.table import CellMetrics, markdown, table

ADVICE = "run the cells of the ablation first: dvc repro ablate"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file with the parameters")
    parser.add_argument("--metrics", type=Path, required=True, help="folder with the metrics of the cells")
    parser.add_argument("--curves", type=Path, required=True, help="folder with the loss curves of the cells")
    parser.add_argument("--table", type=Path, required=True, help="Markdown file to write, beside a CSV file")
    parser.add_argument("--picture", type=Path, required=True, help="PNG file to write")
    args = parser.parse_args()
    ablate = config.load(args.params).ablate

    cells = {variant: [f"{variant}-{seed}" for seed in ablate.seeds] for variant in ablate.run}
    metrics = {
        variant: [
            read_json(args.metrics / f"{name}.json", CellMetrics, ADVICE, ignore_unknown_keys=True) for name in names
        ]
        for variant, names in cells.items()
    }
    curves = {variant: [_read_curve(args.curves / f"{name}.csv") for name in names] for variant, names in cells.items()}
    frame = table(metrics)
    for folder in (args.table.parent, args.picture.parent):
        make_folder(folder)
    write_text(args.table, markdown(frame))
    write_text(args.table.with_suffix(".csv"), frame.to_csv(index=False, lineterminator="\n"))
    comparison_picture(curves, args.picture)
    print(markdown(frame))


def _read_curve(path: Path) -> list[dict[str, Any]]:
    rows = csv.DictReader(io.StringIO(read_bytes(path, ADVICE).decode(errors="replace")))
    try:
        return [
            {"step": int(row["step"]), "val_loss": float(row["val_loss"]) if row["val_loss"] else None} for row in rows
        ]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: expected a table with the columns step and val_loss; {ADVICE}") from error


if __name__ == "__main__":
    exit_cleanly(main)
