"""Estimate FLOPs, memory, disk and time before training.

The estimate is for the run that params.yaml describes, on this machine.
The time comes from a few training steps on random tokens, so no data is needed.
Exit status 1 means that the run does not fit; the message names the nearest
settings that do.

With --device, the estimate is for a device that need not be here. The time is
then planned from the device's data sheet, and the output says what it assumes.

Example:
  lm preset tinystories && lm plan
  lm plan --device a100
"""

import argparse
import functools
from pathlib import Path

from lm.cli.path import path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--params", type=path, default=Path("params.yaml"), help="file with the parameters (%(default)s)"
    )
    parser.add_argument(
        "--checkpoints",
        type=path,
        default=Path("data/.checkpoints"),
        help="folder for checkpoints of unfinished runs (%(default)s)",
    )
    parser.add_argument(
        "--device", metavar="NAME", help="plan for this device instead of measuring here, for example h100 or cpu-8"
    )


def run(args: argparse.Namespace) -> None:
    from lm import config
    from lm.planning.devices import known_device
    from lm.planning.plan import measure_step_seconds, plan
    from lm.planning.planned_time import planned_time, planned_val_tokens
    from lm.training.config import RunConfig
    from lm.training.console import duration
    from lm.training.distributed import is_launched, launch, num_processes, process_group
    from lm.training.train import check_settings

    params = config.load(args.params)
    runtime = params.runtime
    training = RunConfig(model=params.model, optim=params.optim, train=params.train)
    vocab_size = params.tokenizer.vocab_size
    if args.device is not None:
        known = known_device(args.device)
        planned = planned_time(training, vocab_size, runtime, known, planned_val_tokens(params.data))
        estimate = plan(training, vocab_size, runtime, known, args.checkpoints, runtime.num_processes)
        print(estimate)
        estimate.check()
        print(planned)
        return
    device = check_settings(training, runtime, args.checkpoints)
    if runtime.num_processes > 1 and not is_launched():
        launch(functools.partial(run, args), runtime.num_processes)
        return
    with process_group(device) as device:
        estimate = plan(training, vocab_size, runtime, device, args.checkpoints, num_processes())
        print(estimate)
        estimate.check()
        seconds = measure_step_seconds(training, vocab_size, runtime, device)
        total = duration(seconds * params.train.max_steps)
        print(f"time: {seconds:.3g} s per step, about {total} in total, not counting evaluations")
