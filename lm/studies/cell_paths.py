"""The paths on the command line of the stage that trains a cell."""

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class CellPaths:
    """What the stage reads and writes; the help of `parse_cell_paths` describes each."""

    params: Path
    plan: Path
    tokenizer: Path
    tokens: Path
    checkpoints: Path
    tracking: Path
    metrics: Path
    curve: Path
    timing: Path | None

    @property
    def outputs(self) -> dict[str, Path]:
        """The files to write, by the name of their flag."""
        outputs = {"metrics": self.metrics, "curve": self.curve, "timing": self.timing}
        return {name: path for name, path in outputs.items() if path is not None}


def parse_cell_paths(description: str | None) -> CellPaths:
    """Parse the arguments of this process."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file with the parameters")
    parser.add_argument("--plan", type=Path, required=True, help="file of this cell that the stage plan wrote")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder that the stage train_bpe wrote")
    parser.add_argument("--tokens", type=Path, required=True, help="folder that the stage encode_memmap wrote")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for checkpoints of unfinished runs")
    parser.add_argument("--tracking", type=Path, required=True, help="folder for the files of runtime.tracking")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--curve", type=Path, required=True, help="CSV file to write, with one row per evaluation")
    parser.add_argument("--timing", type=Path, help="JSON file to write, with times and rates")
    return CellPaths(**vars(parser.parse_args()))
