"""Live tracking: a run's losses and rates in TensorBoard or Weights & Biases, while it goes on.

Neither is a dependency. What does not start is refused before any work; what fails later costs the curves alone.
"""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from lm.atomic import make_folder
from lm.errors import UserError

Log = Callable[[int, dict[str, float | None]], None]


@contextmanager
def tracker(
    kind: Literal["none", "tensorboard", "wandb"], folder: Path, name: str, config: dict[str, Any], step: int
) -> Iterator[Log]:
    """Inside, `log(step, {"train_loss": 2.5, "grad_norm": 0.8})` adds a point to each curve; a None is left out.

    `name` is the run's, the same when it is resumed; `folder / name` holds its files, and `config` is shown with it.
    `step` is the last one whose points stand, -1 for none: what a killed process logged after it is not shown twice.

    Raises:
        UserError: the package is not installed, or does not start: the folder, the login, the network.
    """
    if kind == "none":
        yield lambda step, values: None
        return
    if importlib.util.find_spec(kind) is None:
        raise UserError(f"runtime.tracking: {kind} is not installed; pip install {kind}, or use none")
    path, works = folder / name, True
    make_folder(path)
    try:
        send, close = _tensorboard(path, config, step) if kind == "tensorboard" else _wandb(path, config)
    except Exception as error:  # each fails in ways of its own, here and below, and all of them mean the same
        raise UserError(f"runtime.tracking: {kind} does not start ({_reason(error)}); mend it, or use none") from error

    def attempt(action: Callable[..., None], *arguments: Any) -> None:
        nonlocal works
        try:
            if works:
                action(*arguments)
        except Exception as error:
            works = False
            tqdm.write(f"runtime.tracking: going on without {kind}: {_reason(error)}")

    try:
        yield lambda step, values: attempt(send, step, {k: v for k, v in values.items() if v is not None})
    finally:
        attempt(close)


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _tensorboard(path: Path, config: dict[str, Any], step: int) -> tuple[Log, Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(path), purge_step=step + 1)  # from there on, the points of earlier files are hidden
    writer.add_text("config", f"```\n{json.dumps(config, indent=2, ensure_ascii=False)}\n```", step + 1)

    def send(step: int, values: dict[str, float | None]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return send, writer.close


def _wandb(path: Path, config: dict[str, Any]) -> tuple[Log, Callable[[], None]]:
    import wandb

    mode = None if wandb.login(prompt=False) else "offline"  # `init` would ask for an account on the terminal
    # The console belongs to the progress bar; a network that is down must not hold up the end of a training.
    settings = wandb.Settings(console="off", finish_timeout=60, reinit="create_new")
    run = wandb.init(
        id=path.name, name=path.name, resume="allow", config=config, dir=str(path), mode=mode, settings=settings
    )
    if run.offline:
        tqdm.write(f"runtime.tracking: wandb is offline; send the run with: wandb sync {path}/wandb/offline-run-*")

    run.define_metric("*", step_metric="step")

    def send(step: int, values: dict[str, float | None]) -> None:
        # The server takes each step once, in order, and keeps what it has of those that a resumed run repeats, to the
        # same values. But offline files of one run that overlap get new numbers when sent; "step", the axis, stays.
        if step >= run.starting_step:
            run.log({"step": step, **values}, step=step)

    # A run that was interrupted is not shown as finished.
    return send, lambda: run.finish(exit_code=int(sys.exc_info()[0] is not None))
