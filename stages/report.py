"""Write the report on everything that the pipeline has made."""

import argparse
from pathlib import Path

from lm.report.run import Run
from lm.report.write import make_report, summary, write_report
from stages import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, required=True, help="HTML file to write, beside Markdown and pictures")
    args = parser.parse_args()
    report = make_report(Run(Path(".")))
    write_report(report, args.report)
    print(summary(report))


if __name__ == "__main__":
    run_stage(main)
