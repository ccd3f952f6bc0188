"""Fit a scaling law to training runs.

FILE.csv has one row per run and the columns parameters, tokens and loss.
Rows with 1 in a column diverged are left out, and so are those without a
finite loss. Rows with the same parameters and tokens are repetitions with
other seeds. The law is

  loss = E + A / parameters^alpha + B / tokens^beta

as in Hoffmann et al. 2022, with 95% intervals by bootstrap over the pairs of
parameters and tokens.

Examples:
  lm fit runs.csv --picture fit.png
  lm fit runs.csv --irreducible 0.543 --json fit.json
"""

import argparse
from pathlib import Path

from lm.cli.path import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=path, metavar="FILE.csv", help="table of the runs")
    parser.add_argument("--irreducible", type=float, metavar="E", help="the value of E, if it is known")
    parser.add_argument(
        "--bootstraps", type=int, default=1000, metavar="N", help="samples for the intervals (%(default)s)"
    )
    parser.add_argument("--json", type=path, metavar="FILE", help="write the fit to a file that lm predict reads")
    parser.add_argument("--picture", type=path, metavar="FILE", help="draw the runs and the fit as a PNG file")


def run(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from lm.errors import UserError
    from lm.studies.scaling.analysis import analyze
    from lm.studies.scaling.files import saved, write_fit
    from lm.studies.scaling.forecasts import most_expensive
    from lm.studies.scaling.picture import fit_picture
    from lm.studies.scaling.runs import read_runs
    from lm.studies.scaling.table import console

    if not 100 <= args.bootstraps <= 1_000_000:
        raise UserError(f"--bootstraps: expected 100 to 1,000,000, got {args.bootstraps:,}")
    _check_outputs(args.runs, {"--json": args.json, "--picture": args.picture})
    runs, left_out = read_runs(args.runs)
    if left_out:
        print(f"left out: {', '.join(left_out)}")
    try:
        analysis = analyze(runs, args.irreducible, args.bootstraps, most_expensive(runs))
    except UserError as error:
        raise UserError(f"{args.runs}: {error}") from error
    print(console(analysis), end="")
    if args.json:
        write_fit(args.json, asdict(saved(analysis, "parameters", "")))
    if args.picture:
        fit_picture(analysis, args.picture)


def _check_outputs(runs: Path, outputs: dict[str, Path | None]) -> None:
    """Check that the files can be written and are different ones, and create their folders, before any work.

    Raises:
        UserError: a folder is not writable, or a path is that of a folder, a device, the runs, or another output.
    """
    from lm.atomic import make_folder
    from lm.errors import UserError

    taken = {runs.resolve(): "the runs"}
    for option, file in outputs.items():
        if file is None:
            continue
        make_folder(file.parent)
        if file.exists() and not file.is_file():
            kind = "folder" if file.is_dir() else "device or pipe"
            raise UserError(f"{option}: expected a file, got the {kind} {file}; choose another path")
        if other := taken.get(file.resolve()):
            raise UserError(f"{option}: expected another file than that of {other}, got {file}; choose another path")
        taken[file.resolve()] = option
