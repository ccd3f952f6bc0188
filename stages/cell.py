"""Train one cell of an ablation, of a scaling law, or of a study: one variant at one point with one seed."""

import argparse
import dataclasses
from pathlib import Path

from lm import config
from lm.atomic import make_folder, write_json
from lm.errors import UserError, exit_cleanly
from lm.studies.cell import Cell, configure, read_learning_rate
from lm.studies.cost import cost
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.data import open_data
from lm.training.distributed import is_launched, launch
from lm.training.loop import OutputPaths, Result
from lm.training.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file with the parameters")
    parser.add_argument("--section", choices=("ablate", "scale", "study"), required=True, help="the grid in that file")
    parser.add_argument("--variant", required=True, help="one of the names in the section's variants")
    parser.add_argument("--point", required=True, help="size and number of training tokens, such as 64x2-400000")
    parser.add_argument("--seed", type=int, required=True, help="seed of the weights and of the order of the batches")
    rate = parser.add_mutually_exclusive_group(required=True)
    rate.add_argument("--learning-rate", type=float, help="the highest learning rate of the schedule")
    rate.add_argument("--learning-rates", type=Path, help="JSON file that the stage learning_rates wrote")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder that the stage train_bpe wrote")
    parser.add_argument("--tokens", type=Path, required=True, help="folder that the stage encode_memmap wrote")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for checkpoints of unfinished runs")
    parser.add_argument("--tracking", type=Path, required=True, help="folder for the files of runtime.tracking")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--curve", type=Path, required=True, help="CSV file to write, with one row per evaluation")
    parser.add_argument("--timing", type=Path, help="JSON file to write, with times and rates")
    args = parser.parse_args()
    params = config.load_any(args.params)
    grid = config.grid(params, args.section)
    if args.variant not in grid.variants:
        raise UserError(f"--variant: expected one of {', '.join(grid.variants)}, got {args.variant!r}")
    if params.runtime.num_processes > 1 and not is_launched():
        launch(main, params.runtime.num_processes)
        return
    learning_rate = args.learning_rate
    if args.learning_rates:
        learning_rate = read_learning_rate(args.learning_rates, args.variant, args.point)
    cell = Cell(variant=args.variant, point=args.point, learning_rate=learning_rate, seed=args.seed)
    run = configure(grid.common, grid.variants[args.variant], cell, grid.axes.num_evaluations)
    tokenizer = Tokenizer.load(args.tokenizer)
    data = open_data(args.tokens, tokenizer)
    for path in filter(None, (args.metrics, args.curve, args.timing)):
        make_folder(path.parent)

    def write(result: Result) -> None:
        metrics = {**result.metrics, **cost(run, tokenizer.vocab_size)}
        write_json(args.metrics, metrics)
        if args.timing:
            write_json(args.timing, result.timing)
        print(summary(cell, result))

    # Compiling would take longer than most cells.
    runtime = dataclasses.replace(params.runtime, compile=False)
    paths = OutputPaths(checkpoints=args.checkpoints, tracking=args.tracking, curve=args.curve, metrics=args.metrics)
    train(run, data, tokenizer, runtime, paths, write, report=lambda line: None)


def summary(cell: Cell, result: Result) -> str:
    """The line that the console shows for a cell."""
    bits = result.metrics.get("document_bits_per_byte")
    loss = "no finite loss" if bits is None else f"{bits:.4f} bits per byte"
    diverged = ", diverged" if result.metrics["diverged"] else ""
    name = f"{cell.variant}-{cell.point}-{cell.seed}"
    return f"{name}: learning rate {cell.learning_rate:g}, {loss}{diverged}, {result.timing['seconds']:.1f} s"


if __name__ == "__main__":
    exit_cleanly(main)
