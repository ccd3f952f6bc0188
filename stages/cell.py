"""Train one cell of an ablation, of a scaling law, or of a study."""

import argparse
import dataclasses
import os
from pathlib import Path

from lm import config
from lm.atomic import make_folder, write_json
from lm.cluster import end_with, has_gpus
from lm.errors import exit_cleanly
from lm.studies.cost import cost
from lm.studies.planned_run import read_planned_run
from lm.studies.remote_cell import CellPaths, train_remotely
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.config import RuntimeConfig
from lm.training.data import open_data
from lm.training.distributed import is_launched, launch
from lm.training.loop import OutputPaths, Result
from lm.training.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file with the parameters")
    parser.add_argument("--plan", type=Path, required=True, help="file of this cell that the stage plan wrote")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder that the stage train_bpe wrote")
    parser.add_argument("--tokens", type=Path, required=True, help="folder that the stage encode_memmap wrote")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for checkpoints of unfinished runs")
    parser.add_argument("--tracking", type=Path, required=True, help="folder for the files of runtime.tracking")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--curve", type=Path, required=True, help="CSV file to write, with one row per evaluation")
    parser.add_argument("--timing", type=Path, help="JSON file to write, with times and rates")
    parser.add_argument(
        "--worker", type=int, help="process that has started this one on a machine of the cluster: train here"
    )
    args = parser.parse_args()
    params = config.load_any(args.params)
    run = read_planned_run(args.plan)
    if args.worker is not None:
        end_with(args.worker)
    elif params.runtime.cluster not in ("none", "local"):
        print(train_on_cluster(args, params.runtime), end="")
        return
    if params.runtime.num_processes > 1 and not is_launched():
        launch(main, params.runtime.num_processes)
        return
    tokenizer = Tokenizer.load(args.tokenizer)
    data = open_data(args.tokens, tokenizer)
    for path in filter(None, (args.metrics, args.curve, args.timing)):
        make_folder(path.parent)

    def write(result: Result) -> None:
        metrics = {**result.metrics, **cost(run, tokenizer.vocab_size)}
        write_json(args.metrics, metrics)
        if args.timing:
            write_json(args.timing, result.timing)
        print(summary(args.plan.stem, result))

    # Compiling would take longer than most cells.
    runtime = dataclasses.replace(params.runtime, compile=False)
    paths = OutputPaths(checkpoints=args.checkpoints, tracking=args.tracking, curve=args.curve, metrics=args.metrics)
    train(run, data, tokenizer, runtime, paths, write, report=lambda line: None)


def train_on_cluster(args: argparse.Namespace, runtime: RuntimeConfig) -> str:
    """Train the cell on another machine, with as many processors as this process may use, or one GPU per process."""
    outputs = {"metrics": args.metrics, "curve": args.curve, "timing": args.timing}
    paths = CellPaths(
        params=args.params,
        plan=args.plan,
        tokenizer=args.tokenizer,
        tokens=args.tokens,
        checkpoints=args.checkpoints,
        tracking=args.tracking,
        outputs={name: path for name, path in outputs.items() if path},
    )
    on_gpu = runtime.device != "cpu" and has_gpus(runtime.cluster)
    num_cpus = int(os.environ.get("OMP_NUM_THREADS", "1")) * runtime.num_processes
    num_gpus = runtime.num_processes if on_gpu else 0
    return train_remotely(paths, runtime.cluster, num_cpus=num_cpus, num_gpus=num_gpus)


def summary(name: str, result: Result) -> str:
    """The line that the console shows for a cell."""
    bits = result.metrics.get("document_bits_per_byte")
    loss = "no finite loss" if bits is None else f"{bits:.4f} bits per byte"
    diverged = ", diverged" if result.metrics["diverged"] else ""
    return f"{name}: {loss}{diverged}, {result.timing['seconds']:.1f} s"


if __name__ == "__main__":
    exit_cleanly(main)
