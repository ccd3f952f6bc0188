"""Train the model described by params.yaml on the token files."""

import argparse
from pathlib import Path

from lm import config
from lm.atomic import make_folder, write_json
from lm.model.files import save_model
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.config import RunConfig
from lm.training.console import duration
from lm.training.data import open_data
from lm.training.distributed import is_launched, launch
from lm.training.loop import OutputPaths, Result
from lm.training.train import train
from stages import run_stage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file with the parameters")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder that the stage train_bpe wrote")
    parser.add_argument("--tokens", type=Path, required=True, help="folder that the stage encode_memmap wrote")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for checkpoints of unfinished runs")
    parser.add_argument("--model", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--curve", type=Path, required=True, help="CSV file to write, with one row per evaluation")
    parser.add_argument("--picture", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--tracking", type=Path, required=True, help="folder for the files of runtime.tracking")
    parser.add_argument(
        "--timing", type=Path, required=True, help="folder to write train.json to, with times and rates"
    )
    args = parser.parse_args()
    params = config.load(args.params)
    if params.runtime.num_processes > 1 and not is_launched():
        launch(main, params.runtime.num_processes)
        return
    tokenizer = Tokenizer.load(args.tokenizer)
    data = open_data(args.tokens, tokenizer)
    for folder in (args.model, args.metrics.parent, args.curve.parent, args.picture.parent, args.timing):
        make_folder(folder)

    def write(result: Result) -> None:
        from lm.report.curve import training_picture  # imports matplotlib

        save_model(args.model, result.model, tokenizer.hash)
        training_picture(result.history, result.metrics.get("floor_bits_per_byte"), args.picture)
        write_json(args.metrics, result.metrics)
        write_json(args.timing / "train.json", result.timing)
        seconds, tokens_per_second = result.timing["seconds"], result.timing["tokens_per_second"]
        print(f"trained in {duration(seconds)}, {tokens_per_second:,.0f} tokens per second")

    run = RunConfig(model=params.model, optim=params.optim, train=params.train)
    paths = OutputPaths(checkpoints=args.checkpoints, tracking=args.tracking, curve=args.curve, metrics=args.metrics)
    train(run, data, tokenizer, params.runtime, paths, write)


if __name__ == "__main__":
    run_stage(main)
