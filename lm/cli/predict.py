"""Predict size, tokens and loss of a training run from a fitted scaling law.

What is not given is chosen to be compute-optimal, where training takes
6 * parameters * tokens FLOPs. The 95% intervals are those of the fitted law;
they do not include the scatter of single runs.

Examples:
  lm predict --flops 1e15
  lm predict --parameters 1e6 --tokens 5e7
  lm predict --loss 0.6 --fit fit.json
"""

import argparse
from pathlib import Path

from lm.cli.path import path

STUDY = Path("studies/scaling")
STUDY_FIT = STUDY / "metrics/scaling.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--flops", type=float, help="predict the compute-optimal run with this many FLOPs")
    parser.add_argument("--parameters", type=float, metavar="N", help="predict a run with a model of this size")
    parser.add_argument("--tokens", type=float, metavar="D", help="predict a run with this many training tokens")
    parser.add_argument("--loss", type=float, help="predict the cheapest run that reaches this loss")
    parser.add_argument(
        "--fit",
        type=path,
        default=STUDY_FIT,
        metavar="FILE",
        help="file that lm fit --json wrote (%(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    from lm.studies.scaling.files import ADVICE, read_fit
    from lm.studies.scaling.prediction import Question, predict

    question = Question(args.flops, args.parameters, args.tokens, args.loss)
    advice = f"make it with: lm cells {STUDY}" if args.fit == STUDY_FIT else ADVICE
    print(predict(read_fit(args.fit, advice), question), end="")
