"""Tracking: the losses and rates of a run in TensorBoard or Weights & Biases, while it trains.

Neither package is a dependency. A tracker that cannot be started is an error before training begins; one that fails
later is turned off, and training continues.
"""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lm.atomic import make_folder
from lm.errors import UserError
from lm.training.config import Tracking
from lm.training.console import write_line

Log = Callable[[int, dict[str, float | None]], None]


@contextmanager
def tracker(kind: Tracking, folder: Path, name: str, config: dict[str, Any], step: int) -> Iterator[Log]:
    """Yield a function `log`: `log(step, {"train_loss": 2.5, "grad_norm": 0.8})` adds a point to each curve.

    Values that are None are left out. `name` identifies the run and is the same when the run is resumed. Its files are
    written to `folder / name`, and `config` is shown with it. `step` is the step from which the run resumes, or -1 for
    a new run; points that a killed process logged after it are not shown twice.

    Raises:
        UserError: the package is not installed, or it cannot be started, for example because of the folder, the login
            or the network.
    """
    if kind == "none":
        yield lambda step, values: None
        return
    check_tracking(kind)
    path, works = folder / name, True
    make_folder(path)
    try:
        send, close = _tensorboard(path, config, step) if kind == "tensorboard" else _wandb(path, config)
    except Exception as error:  # each package raises its own kinds of errors, here and below
        raise UserError(f"runtime.tracking: {kind} cannot be started ({_reason(error)}); fix it or use none") from error

    def attempt(action: Callable[..., None], *arguments: Any) -> None:
        nonlocal works
        try:
            if works:
                action(*arguments)
        except Exception as error:
            works = False
            write_line(f"runtime.tracking: training continues without {kind}: {_reason(error)}")

    try:
        yield lambda step, values: attempt(send, step, {k: v for k, v in values.items() if v is not None})
    finally:
        attempt(close)


def check_tracking(kind: Tracking) -> None:
    """Raise UserError if the package that `runtime.tracking` needs is not installed."""
    if kind != "none" and importlib.util.find_spec(kind) is None:
        raise UserError(f"runtime.tracking: {kind} is not installed; run pip install {kind} or use none")


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _tensorboard(path: Path, config: dict[str, Any], step: int) -> tuple[Log, Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(path), purge_step=step + 1)  # hides points of earlier files from that step on
    writer.add_text("config", f"```\n{json.dumps(config, indent=2, ensure_ascii=False)}\n```", step + 1)

    def send(step: int, values: dict[str, float | None]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return send, writer.close


def _wandb(path: Path, config: dict[str, Any]) -> tuple[Log, Callable[[], None]]:
    import wandb

    mode = None if wandb.login(prompt=False) else "offline"  # without a login, `init` would ask on the terminal
    # The progress bar uses the console, and a network that is down must not delay the end of training.
    settings = wandb.Settings(console="off", finish_timeout=60, reinit="create_new")
    run = wandb.init(
        id=path.name, name=path.name, resume="allow", config=config, dir=str(path), mode=mode, settings=settings
    )
    if run.offline:
        write_line(f"runtime.tracking: wandb is offline; upload the run with: wandb sync {path}/wandb/offline-run-*")

    run.define_metric("*", step_metric="step")

    def send(step: int, values: dict[str, float | None]) -> None:
        # The server accepts each step only once and in order, so steps that it already has are not sent again; a
        # resumed run repeats them with the same values. Overlapping offline files of one run are renumbered when they
        # are uploaded, but "step", the axis of all curves, is kept.
        if step >= run.starting_step:
            run.log({"step": step, **values}, step=step)

    # A nonzero exit code keeps an interrupted run from being shown as finished.
    return send, lambda: run.finish(exit_code=int(sys.exc_info()[0] is not None))
