"""Fit the scaling law to the cells of a grid, print its tables, and write them, the fits and a picture."""

import argparse
from dataclasses import asdict
from pathlib import Path

from lm.atomic import make_folder, write_text
from lm.errors import UserError
from lm.studies.cells_table import read_cells
from lm.studies.scaling.files import saved, write_fit
from lm.studies.scaling.law import UndeterminedError
from lm.studies.scaling.picture import runs_picture, scaling_picture
from lm.studies.scaling.study import COUNTS, MAIN_COUNT, analyze_cells
from lm.studies.scaling.table import markdown
from stages import run_stage

BOOTSTRAPS = 500
UNIT = "bits per byte"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=Path, required=True, help="table of all runs that the stage collect wrote")
    parser.add_argument("--fit", type=Path, required=True, help="JSON file to write, which lm predict reads")
    parser.add_argument("--table", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--picture", type=Path, required=True, help="PNG file to write")
    args = parser.parse_args()
    for path in (args.fit, args.table, args.picture):
        make_folder(path.parent)
    cells = read_cells(args.cells)
    try:
        study = analyze_cells(cells, BOOTSTRAPS)
    except UndeterminedError as error:  # a result, like a run that diverged
        text = f"No law is fitted: {error}.\n"
        write_fit(args.fit, {"reason": str(error)})
        write_text(args.table, text)
        runs_picture(cells, str(error), args.picture)
        print(text)
        return
    except UserError as error:
        raise UserError(f"{args.cells}: {error}") from error

    fits = {}
    for count in COUNTS:
        for kind, analyses in (("free", study.free), ("known", study.known)):
            if analyses:
                fit = asdict(saved(analyses[count], COUNTS[count], UNIT))
                # `lm predict` needs these of the main fit only.
                fits[f"{count}, E {kind}"] = {name: value for name, value in fit.items() if name != "laws"}
    write_fit(args.fit, {**asdict(saved(study.main, COUNTS[MAIN_COUNT], UNIT)), "fits": fits})
    write_text(args.table, markdown(study))
    scaling_picture(study, args.picture)
    print(markdown(study))


if __name__ == "__main__":
    run_stage(main)
