"""Write a page about the last run, or about experiments side by side.

Without arguments, it writes metrics/report.html and metrics/report.md, as the
last stage of the pipeline does, and prints what each section shows. They hold
no times and nothing about the machine, so the same results give the same files;
--out adds both. With the names of experiments, branches or commits, it compares
them; `workspace` is the present state of the folder.

Examples:
  lm report
  lm report --out report.html
  lm report base no-norm --out comparison.html
"""

import argparse
from pathlib import Path

from lm.cli.path import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help="experiments to compare (default: report on this folder)"
    )
    parser.add_argument("--out", type=path, metavar="FILE", help="HTML file to write (default: metrics/report.html)")
    parser.add_argument(
        "--gpt2", type=path, metavar="FOLDER", help="GPT-2's vocab.json and merges.txt, to compare with"
    )


def run(args: argparse.Namespace) -> None:
    from lm.atomic import make_folder, write_text
    from lm.errors import UserError
    from lm.report.comparison import compare
    from lm.report.run import Run
    from lm.report.write import make_report, summary, write_report

    if args.experiments:
        if args.gpt2 is not None:
            raise UserError("--gpt2: a comparison of experiments has no section on the tokenizer; leave the option out")
        report, out = compare(args.experiments), args.out or Path("comparison.html")
    else:
        report, out = make_report(Run(Path("."), timing=args.out is not None, gpt2=args.gpt2)), args.out
    if out is None:
        out = Path("metrics/report.html")
        write_report(report, out)
    else:
        make_folder(out.parent)
        write_text(out, report.html())
    print(summary(report))
    print(f"\nThe report: {out}")
