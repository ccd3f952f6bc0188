"""Rewrite params.yaml for a larger or smaller setup.

Comments, and parameters that the preset does not set, are kept. Without a name,
the presets are listed.

Example:
  lm preset tinystories
"""

import argparse
from pathlib import Path

from lm.cli.path import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="the preset to apply")
    parser.add_argument("--params", type=path, default=Path("params.yaml"), help="file to rewrite (%(default)s)")


def run(args: argparse.Namespace) -> None:
    from lm.presets.preset import apply_preset, preset_names

    if args.name is None:
        print("\n".join(preset_names()))
        return
    changes = apply_preset(args.name, args.params)
    print("\n".join(changes) if changes else f"{args.params} already matches the preset {args.name}")
