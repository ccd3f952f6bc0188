"""Build the parser from the modules of the verbs, and run the requested verb.

Each module has `add_arguments(parser)` and `run(args)`. The first line of its docstring is its line in `lm --help`, and
the whole docstring is the description in `lm VERB --help`. The modules import torch and other large libraries inside
`run`, so that `--help` and the small verbs start quickly.
"""

import argparse
import functools
from importlib import metadata
from types import ModuleType
from typing import NoReturn

from lm.cli import cells, export, fit, generate, import_model, plan, predict, preset, report, serve
from lm.errors import UserError, exit_cleanly

VERBS: dict[str, ModuleType] = {
    "preset": preset,
    "plan": plan,
    "cells": cells,
    "fit": fit,
    "predict": predict,
    "report": report,
    "generate": generate,
    "serve": serve,
    "export": export,
    "import": import_model,
}


def main(prog: str = "lm") -> None:
    """Run the command line with the arguments in `sys.argv`, then exit with the status that `--help` documents.

    The console script `lm` and `python -m lm` both start here; `prog` is the name that usage messages show.
    """
    exit_cleanly(functools.partial(_run, prog))


def _run(prog: str) -> None:
    parser = make_parser(prog)
    args, unknown = parser.parse_known_args()
    if unknown:
        hint = "; put -- before a text that begins with a hyphen" if unknown[0].startswith("-") else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    args.run(args)


def make_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of all verbs; its result has the verb's function in `run`."""
    parser = _Parser(
        prog=prog,
        description="Use a language model built from scratch. To train one, run the pipeline: dvc repro",
        epilog="Exit status: 0 success, 1 an error that the message explains, 2 wrong usage, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"lm {_version()}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name, module in VERBS.items():
        doc = module.__doc__ or ""
        verb = verbs.add_parser(
            name,
            help=doc.partition("\n")[0].rstrip("."),
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose messages, which may quote the arguments, are one line like those of other errors."""

    def error(self, message: str) -> NoReturn:
        super().error(str(UserError(message)))


def _version() -> str:
    try:
        return metadata.version("lm")
    except metadata.PackageNotFoundError:  # `python -m lm` also works in a folder that is not installed
        return "(not installed)"
