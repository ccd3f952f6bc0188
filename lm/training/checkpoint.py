"""In-flight checkpoints: where an interrupted run goes on from, as if nothing had happened.

They live outside every output of the pipeline, in a folder named by the run's fingerprint: the configuration, the
data and the code that determine its result. A run of anything else never finds them. Two files are kept, each
replaced in one step: the state at the last evaluation, and the newest one in between. They are safetensors with a
JSON header, so that loading executes nothing.
"""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lm.errors import UserError
from lm.model.files import write_tensors

History = list[dict[str, Any]]


@dataclasses.dataclass
class Progress:
    """How far a run has come, weights apart: `losses` are those of the steps since the last evaluation."""

    step: int
    history: History
    losses: list[float]


def fingerprint(**facts: Any) -> str:
    """Hash of all that determines a run's result: `facts`, the code of model and training, torch's version."""
    digest = hashlib.sha256(json.dumps({**facts, "torch": torch.__version__}, sort_keys=True).encode())
    package = Path(__file__).parent.parent
    for path in sorted([*package.glob("model/*.py"), *package.glob("training/*.py")]):
        if path.name != "config.py":  # configuration counts by its values, which are among the facts
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Checkpoints:
    """The checkpoints of one run, held under a lock: `with Checkpoints(root, fingerprint) as checkpoints`."""

    def __init__(self, root: Path, fingerprint: str) -> None:
        self.folder = root / fingerprint
        self.evaluated = self.folder / "evaluated.safetensors"
        self.newest = self.folder / "newest.safetensors"
        self._lock = FileLock(self.folder / "lock")  # the system lets go of it when the process dies
        self._finished = False

    def __enter__(self) -> "Checkpoints":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self.folder}: another process is training this very run; wait for it, or stop it"
            ) from None
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror})") from error
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._finished:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    def save(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Write the whole state and put it in the place of the previous one in one step.

        Raises:
            UserError: the disk is full or cannot be written; the previous file is as it was.
        """
        tensors = {f"model.{name}": weight for name, weight in model.named_parameters()}
        state = optimizer.state_dict()
        scalars: dict[str, dict[str, Any]] = {}
        for index, values in state["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                else:
                    scalars.setdefault(str(index), {})[key] = value
        tensors["rng.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["rng.cuda"] = torch.cuda.get_rng_state()
        header = {
            "progress": json.dumps(dataclasses.asdict(progress)),
            "optimizer": json.dumps({"state": scalars, "param_groups": state["param_groups"]}),
        }
        write_tensors(path, tensors, header)

    def restore(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """Put a saved state into `model`, `optimizer` and the random generators, and tell how far it had come.

        Raises:
            UserError: the file is damaged.
        """
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            saved = json.loads(header["optimizer"])
            progress = Progress(**json.loads(header["progress"]))
            weights = {name: tensors[f"model.{name}"] for name, _ in model.named_parameters()}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: the checkpoint is damaged ({error}); delete it to go on without it") from error
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(weights[name])
        state: dict[int, dict[str, Any]] = {int(index): values for index, values in saved["state"].items()}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng.cuda"])
        return progress

    def latest(self) -> Path | None:
        """The file that has come furthest, or None before the first."""
        there = [path for path in (self.evaluated, self.newest) if path.exists()]
        return max(there, key=_saved_step, default=None)

    def finish(self) -> None:
        """The run's outputs are written: delete its checkpoints on the way out."""
        self._finished = True


def _saved_step(path: Path) -> int:
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["progress"])["step"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: the checkpoint is damaged ({error}); delete it to go on without it") from error
