"""A training as a program: `python training_program.py JOB FOLDER`. The tests start, kill and resume it.

JOB is a pickle that the tests wrote: `run`, `data`, `tokenizer`, `runtime`, and `fault`, which is None or a tuple
(phase, count, rank, act): in the process of that rank, at the given call of the phase, the process dies or fails. The
files of the training go to FOLDER, and so do its results: the model, and the last checkpoint with the optimizer's
state.
"""

import os
import pickle
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

import lm.training.checkpoint
import lm.training.distributed
import lm.training.evaluation
import lm.training.loop
import lm.training.train_step
from lm.errors import UserError, exit_cleanly
from lm.model.files import save_model
from lm.training.distributed import is_launched, launch
from lm.training.loop import OutputPaths, Result
from lm.training.train import train

DIE, FAIL = "die", "fail"


def main() -> None:
    job, folder = pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
    if job["runtime"].num_processes > 1 and not is_launched():
        launch(main, job["runtime"].num_processes)
        return
    torch.set_num_threads(1)
    lm.training.evaluation.CONTINUATION_TOKENS = 4  # most of the time would go to them
    (folder / f"pid-{os.environ.get('RANK', 0)}").write_text(str(os.getpid()))
    if job["fault"]:
        plant(*job["fault"])

    def write(result: Result) -> None:
        save_model(folder / "model", result.model, "of the test")
        shutil.copytree(sorted(folder.glob("checkpoints/*/step-*"))[-1], folder / "last", dirs_exist_ok=True)

    train(job["run"], job["data"], job["tokenizer"], job["runtime"], paths_in(folder), write)


def run_redirected(job: Path, folder: Path, stdout: Path, stderr: Path) -> None:
    """Run the program in a forked process, with its output in two files; the processes that it starts fork, too."""
    for path, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    lm.training.distributed.start_processes = partial(start_processes, start_method="fork")
    sys.argv = [__file__, str(job), str(folder)]
    exit_cleanly(main)


def paths_in(folder: Path) -> OutputPaths:
    return OutputPaths(
        checkpoints=folder / "checkpoints",
        tracking=folder / "tracking",
        curve=folder / "curve.csv",
        metrics=folder / "metrics.json",
    )


def plant(phase: str, count: int, rank: int, act: str) -> None:
    """Make call number `count` of the function for `phase` kill the process or raise an error."""
    if int(os.environ.get("RANK", 0)) != rank:
        return
    owner: Any
    owner, name = {
        "start": (lm.training.loop, "TransformerLM"),
        "mid step": (lm.training.train_step, "clip_gradients"),
        "checkpoint half written": (os, "fsync"),
        "checkpoint without its index": (lm.training.checkpoint, "write_text"),
        "evaluation": (lm.training.loop, "mean_loss"),
        "outputs": (shutil, "copytree"),  # between the two of them
    }[phase]
    original, calls = getattr(owner, name), 0

    def faulty(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and act == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if calls == count:
            raise UserError("something is wrong")
        return original(*args, **kwargs)

    setattr(owner, name, faulty)


if __name__ == "__main__":
    exit_cleanly(main)
