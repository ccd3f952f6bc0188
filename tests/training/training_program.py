"""A training as a program of its own: `python training_program.py JOB FOLDER`. The tests start, kill and resume it.

JOB is a pickle that the tests wrote: `run`, `data`, `tokenizer`, `runtime`, and `fault` = (phase, count, rank, act) or
None: in the process of that rank, at the phase's call of that count, the process dies or fails. FOLDER takes the files
of the training, of its end as well: the model, and the last checkpoint with the optimizer's state.
"""

import os
import pickle
import shutil
import signal
import sys
from pathlib import Path

import torch

import lm.training.checkpoint
import lm.training.evaluation
import lm.training.loop
import lm.training.train_step
from lm.errors import UserError, exit_cleanly
from lm.model.files import save_model
from lm.training.distributed import is_launched, launch
from lm.training.loop import OutputPaths
from lm.training.train import train

DIE, FAIL = "die", "fail"


def main() -> None:
    job, folder = pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
    if job["runtime"].num_processes > 1 and not is_launched():
        launch(main, job["runtime"].num_processes)
        return
    torch.set_num_threads(1)
    lm.training.evaluation.CONTINUATION_TOKENS = 4  # most of the time would go there
    (folder / f"pid-{os.environ.get('RANK', 0)}").write_text(str(os.getpid()))
    if job["fault"]:
        plant(*job["fault"])

    def write(result):
        save_model(folder / "model", result.model, "of the test")
        shutil.copytree(sorted(folder.glob("checkpoints/*/step-*"))[-1], folder / "last", dirs_exist_ok=True)

    paths = OutputPaths(
        checkpoints=folder / "checkpoints",
        tracking=folder / "tracking",
        curve=folder / "curve.csv",
        metrics=folder / "metrics.json",
    )
    train(job["run"], job["data"], job["tokenizer"], job["runtime"], paths, write)


def plant(phase: str, count: int, rank: int, act: str) -> None:
    """Let something happen at the call number `count` of a function, in one of the processes."""
    if int(os.environ.get("RANK", 0)) != rank:
        return
    owner, name = {
        "start": (lm.training.loop, "TransformerLM"),
        "mid step": (lm.training.train_step, "clip_gradients"),
        "checkpoint half written": (os, "fsync"),
        "checkpoint without its index": (lm.training.checkpoint, "write_text"),
        "evaluation": (lm.training.loop, "mean_loss"),
        "outputs": (shutil, "copytree"),  # between the two of them
    }[phase]
    original, calls = getattr(owner, name), 0

    def faulty(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count and act == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        if calls == count:
            raise UserError("something that is wrong")
        return original(*args, **kwargs)

    setattr(owner, name, faulty)


if __name__ == "__main__":
    exit_cleanly(main)
