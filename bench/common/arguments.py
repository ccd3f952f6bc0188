"""Command-line arguments that several benchmarks have."""

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path

from lm.atomic import make_folder
from lm.errors import UserError


def make_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m MODULE` with the module's docstring as its description."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_choices(
    parser: argparse.ArgumentParser, flag: str, choices: Collection[str], default: Sequence[str] | None, note: str = ""
) -> None:
    """Add a flag that takes one or more of `choices`; `note` says what the default is, if that is not obvious."""
    note = note or ("all" if default and len(default) == len(choices) else " ".join(default or []))
    parser.add_argument(
        flag, nargs="+", choices=choices, default=default, metavar="NAME", help=f"{', '.join(choices)}; default: {note}"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE, one object per row")


def make_json_folder(path: Path | None) -> None:
    """Create the folder of `--json` before any work starts.

    Raises:
        UserError: it cannot be created or written to.
    """
    if path:
        make_folder(path.parent)


def add_checkout(parser: argparse.ArgumentParser, name: str, file: str) -> None:
    """Add `--NAME DIR`, the folder of a checkout whose `file` the benchmark runs."""
    parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=f"a checkout of {name}, to run its {file}")


def check_checkout(name: str, folder: Path | None, file: str) -> None:
    """Raise a UserError if `folder` is given and does not have the `file` that the benchmark runs."""
    if folder and not (folder / file).is_file():
        raise UserError(f"--{name}: {folder}: expected the folder of a checkout, found no {file} in it")


def check_positive(flag: str, numbers: Collection[int]) -> None:
    """Raise a UserError if a number is less than 1."""
    for number in numbers:
        if number < 1:
            raise UserError(f"{flag}: expected 1 or more, got {number}")
