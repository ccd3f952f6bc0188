"""Predict size, tokens and loss of a training run from a fitted scaling law.

What is not given is what is best for the FLOPs of training, which are
6 * parameters * tokens. Intervals are those of the fit, with a probability
of 95%; they do not include the scatter of single runs.

Examples:
  lm predict --flops 1e15
  lm predict --parameters 1e6 --tokens 5e7
  lm predict --loss 0.6 --fit fit.json
"""

import argparse
from pathlib import Path

from lm.cli.path import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--flops", type=float, help="predict the best run with this budget")
    parser.add_argument("--parameters", type=float, metavar="N", help="predict a run with a model of this size")
    parser.add_argument("--tokens", type=float, metavar="D", help="predict a run with this many training tokens")
    parser.add_argument("--loss", type=float, help="predict the cheapest run that reaches this loss")
    parser.add_argument(
        "--fit",
        type=path,
        default=Path("studies/scaling/metrics/scaling.json"),
        metavar="FILE",
        help="file that lm fit --json wrote (%(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    from lm.studies.scaling.files import read_fit
    from lm.studies.scaling.prediction import Question, predict

    question = Question(args.flops, args.parameters, args.tokens, args.loss)
    print(predict(read_fit(args.fit), question), end="")
