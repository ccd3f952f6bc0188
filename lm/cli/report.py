"""Show the results of the last pipeline run.

These are the metrics, the tables, one sample and the paths of the pictures.

Example:
  lm report
"""

import argparse
from pathlib import Path

from lm.cli.path import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metrics", type=path, default=Path("metrics"), help="folder of metrics (%(default)s)")
    parser.add_argument(
        "--samples", type=path, default=Path("data/samples"), help="folder with samples.json (%(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    from lm.report import report

    print(report(args.metrics, args.samples))
