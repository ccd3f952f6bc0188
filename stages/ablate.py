"""Train one cell of the ablation: one variant with one seed."""

import argparse
import dataclasses
from pathlib import Path

from lm import config
from lm.atomic import make_folder, write_json
from lm.errors import UserError, exit_cleanly
from lm.studies.ablation import cell
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.config import RunConfig
from lm.training.data import open_data
from lm.training.distributed import is_launched, launch
from lm.training.loop import OutputPaths, Result
from lm.training.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file with the parameters")
    parser.add_argument("--variant", required=True, help="one of the names in ablate.variants")
    parser.add_argument("--seed", type=int, required=True, help="seed of the weights and of the order of the batches")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder that the stage train_bpe wrote")
    parser.add_argument("--tokens", type=Path, required=True, help="folder that the stage encode_memmap wrote")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for checkpoints of unfinished runs")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--curve", type=Path, required=True, help="CSV file to write, with one row per evaluation")
    parser.add_argument("--tracking", type=Path, required=True, help="folder for the files of runtime.tracking")
    args = parser.parse_args()
    params = config.load(args.params)
    if args.variant not in params.ablate.variants:
        raise UserError(f"--variant: expected one of {', '.join(params.ablate.variants)}, got {args.variant!r}")
    if params.runtime.num_processes > 1 and not is_launched():
        launch(main, params.runtime.num_processes)
        return
    tokenizer = Tokenizer.load(args.tokenizer)
    data = open_data(args.tokens, tokenizer)
    for folder in (args.metrics.parent, args.curve.parent):
        make_folder(folder)

    def write(result: Result) -> None:
        write_json(args.metrics, result.metrics)
        print(summary(args.variant, args.seed, result))

    base = RunConfig(model=params.model, optim=params.optim, train=params.train)
    run = cell(base, params.ablate, args.variant, args.seed)
    # A cell trains for seconds, and compiling would take longer.
    runtime = dataclasses.replace(params.runtime, compile=False)
    paths = OutputPaths(checkpoints=args.checkpoints, tracking=args.tracking, curve=args.curve, metrics=args.metrics)
    train(run, data, tokenizer, runtime, paths, write, report=lambda line: None)


def summary(variant: str, seed: int, result: Result) -> str:
    """The line that the console shows for a cell."""
    loss = f"val loss {result.metrics['val_loss']:.4f}" if "val_loss" in result.metrics else "no finite val loss"
    diverged = ", diverged" if result.metrics["diverged"] else ""
    return f"{variant}, seed {seed}: {loss}{diverged}, {result.timing['seconds']:.1f} s"


if __name__ == "__main__":
    exit_cleanly(main)
