"""Train one cell in this process. The stage is stages/cell.py, which decides where this runs."""

import dataclasses

from lm import config
from lm.atomic import make_folder, write_json
from lm.errors import exit_cleanly
from lm.studies.cell_paths import parse_cell_paths
from lm.studies.cost import cost
from lm.studies.planned_run import read_planned_run
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.data import open_data
from lm.training.distributed import is_launched, launch
from lm.training.loop import OutputPaths, Result
from lm.training.train import train
from stages import start_up_seconds


def main() -> None:
    start_up = start_up_seconds()
    paths = parse_cell_paths(__doc__)
    params = config.load_any(paths.params)
    run = read_planned_run(paths.plan)
    if params.runtime.num_processes > 1 and not is_launched():
        launch(main, params.runtime.num_processes)
        return
    tokenizer = Tokenizer.load(paths.tokenizer)
    data = open_data(paths.tokens, tokenizer)
    for path in paths.outputs.values():
        make_folder(path.parent)

    def write(result: Result) -> None:
        metrics = {**result.metrics, **cost(run, tokenizer.vocab_size)}
        write_json(paths.metrics, metrics)
        if paths.timing:
            write_json(paths.timing, result.timing)
        print(summary(paths.plan.stem, result, start_up))

    # Compiling would take longer than most cells.
    runtime = dataclasses.replace(params.runtime, compile=False)
    outputs = OutputPaths(
        checkpoints=paths.checkpoints, tracking=paths.tracking, curve=paths.curve, metrics=paths.metrics
    )
    train(run, data, tokenizer, runtime, outputs, write, report=lambda line: None)


def summary(name: str, result: Result, start_up: float) -> str:
    """The line that the console shows for a cell."""
    bits = result.metrics.get("document_bits_per_byte")
    loss = "no finite loss" if bits is None else f"{bits:.4f} bits per byte"
    diverged = ", diverged" if result.metrics["diverged"] else ""
    return f"{name}: {loss}{diverged}, {result.timing['seconds']:.1f} s after {start_up:.1f} s of start-up"


if __name__ == "__main__":
    exit_cleanly(main)
