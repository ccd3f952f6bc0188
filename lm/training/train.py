"""Training from start to finish: checks, plan, checkpoints, the training loop and the outputs."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from lm.atomic import check_folder
from lm.device import check_precision, keep_freed_memory, pick_device
from lm.errors import UserError
from lm.model.files import weights_hash
from lm.planning.plan import plan
from lm.tokenizer.tokenizer import Tokenizer
from lm.training.checkpoint import Checkpoints, fingerprint
from lm.training.config import RunConfig, RuntimeConfig
from lm.training.console import write_line
from lm.training.data import Data
from lm.training.distributed import is_first, num_processes, process_group
from lm.training.initial_model import check_initial_model, load_initial_model
from lm.training.interruption import Interruption
from lm.training.loop import OutputPaths, Report, Result, TrainingLoop
from lm.training.tracking import check_tracking, tracker


def train(
    run: RunConfig,
    data: Data,
    tokenizer: Tokenizer,
    runtime: RuntimeConfig,
    paths: OutputPaths,
    write: Callable[[Result], None],
    report: Report = write_line,
) -> None:
    """Train a model, or resume an interrupted run with the same configuration, data and code.

    Every process of the run calls this function. When training ends, the first process calls `write`, which saves the
    outputs; after that, the checkpoints are deleted. `report` is called with the plan, with one line per evaluation,
    and with other messages.

    A loss or gradient that is not finite ends the run early, unless `train.max_skipped_steps` allows the step to be
    skipped. The result is then the model of the last evaluation, and its metrics have `diverged` = 1.

    Raises:
        UserError: the initial model does not fit, there is too little text, the device is not available, memory or disk
            space does not suffice, a folder cannot be written, or another process is training the same run.
        KeyboardInterrupt: on Ctrl-C, after the current step has been finished and saved.
    """
    _check_splits(run, data)
    keep_freed_memory()
    device = check_settings(run, runtime, paths.checkpoints)
    facts = dataclasses.asdict(run)
    if run.train.initial_model != "none":
        load_initial_model(run, tokenizer)  # only to check it before any work
        facts["initial_hash"] = weights_hash(Path(run.train.initial_model))
    name = fingerprint(run=facts, tokens=data.identity, tokenizer=tokenizer.hash, device=device.type)
    with process_group(device) as device, Interruption() as interruption:
        needs = plan(run, tokenizer.vocab_size, runtime, device, paths.checkpoints / name, num_processes())
        report(str(needs))
        needs.check()
        with Checkpoints(paths.checkpoints, name, runtime.keep_checkpoints) as checkpoints:
            loop = TrainingLoop(run, data, tokenizer, runtime, device, checkpoints, paths, report)
            tracking = runtime.tracking if is_first() else "none"
            last_step = loop.progress.step if loop.progress.history else -1
            with tracker(tracking, paths.tracking, name, facts, last_step) as log:
                result = loop.run(interruption, log)
            checkpoints.wait()
            if is_first():
                write(result)
            checkpoints.finish()


def check_settings(run: RunConfig, runtime: RuntimeConfig, checkpoints: Path) -> torch.device:
    """Check what can be checked without the data, and return the device to train on.

    Raises:
        UserError: the device is not available or too old for the precision, the package for tracking is not installed,
            the initial model does not fit, or checkpoints cannot be written to the folder `checkpoints`.
    """
    device = pick_device(runtime.device)
    check_precision(device, run.train.precision)
    check_tracking(runtime.tracking)
    check_initial_model(run)
    check_folder(checkpoints)
    return device


def _check_splits(run: RunConfig, data: Data) -> None:
    length = run.model.context_length
    if len(data.train) <= length:
        raise UserError(
            f"model.context_length: one window needs {length + 1} tokens, but the train split has {len(data.train)}; "
            "use more text (data.train_bytes) or a shorter context"
        )
    if len(data.val) < 1:
        raise UserError("the val split is empty; raise data.val_bytes or data.val_fraction")
