"""Train one cell of the ablation: one variant of the model with one seed."""

import argparse
import dataclasses
from pathlib import Path

from lm import config
from lm.atomic import make_folder, write_json
from lm.errors import UserError, exit_cleanly
from lm.studies.ablation import cell
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.data import open_data
from lm.training.distributed import is_launched, launch
from lm.training.loop import OutputPaths, Result, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--variant", required=True, help="a name out of ablate.variants")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the stage train_bpe")
    parser.add_argument("--tokens", type=Path, required=True, help="folder of the stage encode_memmap")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder of in-flight checkpoints")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--curve", type=Path, required=True, help="CSV file to write, a row an evaluation")
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

    # A cell runs for seconds: compiling it would take longer.
    runtime = dataclasses.replace(params.runtime, compile=False)
    files = OutputPaths(checkpoints=args.checkpoints, tracking=args.tracking, curve=args.curve, metrics=args.metrics)
    train(cell(params, args.variant, args.seed), data, tokenizer, runtime, files, write)


if __name__ == "__main__":
    exit_cleanly(main)
