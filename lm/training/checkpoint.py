"""Checkpoints of unfinished runs, from which an interrupted run resumes with the same bits.

They are kept outside the outputs of the pipeline, in a folder named after the run's fingerprint: a hash of the
configuration, the data and the code, which determine its result. A run that differs in any of them never uses these
checkpoints.

    <fingerprint>/step-00000300/shard-00001-model-00001-of-00001.safetensors   one file per process
                                index.json                                      progress and the files' checksums

The files are written and read by PyTorch's distributed checkpoints, so a run can resume with a different number of
processes. Nothing is ever unpickled. The index is written last, and a folder without it is not a checkpoint. Training
waits only until the state has been copied, and continues while the copy is written.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import re
import shutil
import warnings
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from annotated_types import Ge
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult
from typing_extensions import TypedDict

from lm.atomic import make_folder, write_text
from lm.errors import UserError
from lm.schema import open_file, read_bytes, validate
from lm.training.console import write_line
from lm.training.distributed import broadcast_from_first, is_first, wait_for_all
from lm.training.history import HistoryRow, Progress

_CODE = "model/**/*.py", "training/**/*.py", "evaluation/documents.py", "evaluation/kinds.py", "corpus/grammar*.py"
_INDEX = "index.json"
_NAME = "step-{:08}"


class _Numbers(TypedDict):
    """What AdamW keeps for each parameter beside its tensors."""

    step: Annotated[int, Ge(1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Index:
    """The content of `index.json`: `optimizer` has the numbers of each parameter, `files` the checksums."""

    progress: Progress
    optimizer: dict[str, _Numbers]
    files: dict[str, str]


def fingerprint(**facts: Any) -> str:
    """Hash of what determines the result of a run: `facts`, torch's version, and the code that computes the result."""
    digest = hashlib.sha256(json.dumps({**facts, "torch": torch.__version__}, sort_keys=True).encode())
    package = Path(__file__).parent.parent
    for path in sorted(path for pattern in _CODE for path in package.glob(pattern)):
        if path.name != "config.py":  # the values of the configuration are among the facts
            digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Checkpoints:
    """The checkpoints of one run, protected by a lock: `with Checkpoints(root, fingerprint, keep) as checkpoints`.

    All processes of a run call every method together. The newest `keep` checkpoints are kept, and also the newest one
    that was evaluated and the one with the lowest `val_loss`.

    Raises, on entering:
        UserError: another process is training the same run, or the folder cannot be written.
    """

    def __init__(self, root: Path, fingerprint: str, keep: int) -> None:
        self.folder = root / fingerprint
        self.keep = keep
        self._lock = FileLock(self.folder / "lock")  # the system releases it when the process dies
        self._finished = False
        self._undeletable: set[Path] = set()
        self._saving: concurrent.futures.Future[Any] | None = None
        # A separate group, so that the messages of saving and of training, which run at the same time, do not mix.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        # With a single process, PyTorch's checkpoints warn about it at every save, in a separate thread.
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")

    def __enter__(self) -> "Checkpoints":
        if is_first():
            make_folder(self.folder)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise UserError(
                    f"{self.folder}: another process is training the same run; wait for it or stop it"
                ) from None
            except OSError as error:
                raise UserError(f"{self.folder}: cannot be written ({error.strerror})") from error
            for path in self.folder.glob("step-*"):
                if _step_of(path) is None:
                    write_line(f"{path}: not a checkpoint; ignored")
                elif not (path / _INDEX).exists():  # the process was killed while writing it
                    self._delete(path)
        wait_for_all()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.wait()
        elif self._saving is not None:
            concurrent.futures.wait([self._saving])  # before the lock is released
        if is_first():
            if self._finished:
                shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.release()

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Copy the whole state, and write the copy in the background; first waits for the previous save.

        Raises:
            UserError: the previous save failed, for example because the disk is full; older checkpoints are intact.
        """
        self.wait()
        path = self.folder / _NAME.format(progress.step)
        if is_first():
            shutil.rmtree(path, ignore_errors=True)  # a damaged checkpoint of this step
        wait_for_all()
        tensors = {f"model.{name}": weight.detach() for name, weight in model.named_parameters()}
        numbers: dict[str, dict[str, Any]] = {}
        for name, weight in model.named_parameters():
            for key, value in optimizer.state[weight].items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{name}.{key}"] = value
                else:
                    numbers.setdefault(name, {})[key] = value
        facts = {"progress": dataclasses.asdict(progress), "optimizer": numbers}
        writer = _Writer(path, json.loads(json.dumps(facts)))  # a copy, because training goes on
        saving = dcp.async_save(tensors, storage_writer=writer, process_group=self._group)
        self._saving = saving if isinstance(saving, concurrent.futures.Future) else saving.upload_completion

    def wait(self) -> None:
        """Wait until the last save is on the disk.

        Raises:
            UserError: the checkpoint could not be written.
        """
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        try:
            saving.result()
        except (OSError, CheckpointException, SafetensorError, UserError) as error:
            kept = self.steps()
            raise UserError(
                f"{self.folder}: a checkpoint cannot be written ({_cause(error)}); free some space or fix the path, "
                f"and run again{f' to resume from step {kept[-1]}' if kept else ''}"
            ) from error
        if is_first():
            self._prune()
        wait_for_all()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in ascending order; damaged checkpoints are included."""
        steps = (_step_of(path.parent) for path in self.folder.glob(f"step-*/{_INDEX}"))
        return sorted(step for step in steps if step is not None)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, evaluated: bool = False) -> Progress | None:
        """Load the newest checkpoint, or the newest `evaluated` one, into `model` and `optimizer`; return its progress.

        Damaged checkpoints are reported and skipped. Returns None if there is no intact one.

        Raises:
            UserError: an intact checkpoint does not fit the model.
        """
        self.wait()
        step = -1
        if is_first():
            step = next((step for step in reversed(self.steps()) if self._is_usable(step, evaluated)), -1)
        step = broadcast_from_first(step)
        if step < 0:
            return None
        path = self.folder / _NAME.format(step)
        facts = _read_index(path)
        reader = HuggingFaceStorageReader(str(path))
        names = reader.read_metadata().state_dict_metadata
        tensors = {f"model.{name}": weight.detach() for name, weight in model.named_parameters()}
        with_moments = {name for name, _ in model.named_parameters() if f"optimizer.{name}.exp_avg" in names}
        if with_moments != facts["optimizer"].keys():  # AdamW counts the steps of each parameter
            raise UserError(f"{path}: does not fit the model (the optimizer's); delete it to continue without it")
        for name, weight in model.named_parameters():
            state = optimizer.state[weight]
            state.clear()
            state.update(facts["optimizer"].get(name, {}))
            for key in names:
                if key.startswith(f"optimizer.{name}."):
                    tensors[key] = state[key.removeprefix(f"optimizer.{name}.")] = torch.zeros_like(weight)
        try:
            dcp.load(tensors, storage_reader=reader, process_group=self._group)
        except (CheckpointException, ValueError) as error:
            raise UserError(
                f"{path}: does not fit the model ({_cause(error)}); delete it to continue without it"
            ) from error
        return Progress(**facts["progress"])

    def finish(self) -> None:
        """Delete the checkpoints on exit, because the outputs of the run have been written."""
        self._finished = True

    def _is_usable(self, step: int, evaluated: bool) -> bool:
        path = self.folder / _NAME.format(step)
        try:
            facts = _read_index(path)
            if {file.name for file in path.glob("*.safetensors")} != set(
                facts["files"]
            ):  # every file there would be read
                raise ValueError("files are missing or were added")
            for name, checksum in facts["files"].items():
                if _sha256(path / name) != checksum:
                    raise ValueError(f"{name} has changed")
            progress = Progress(**facts["progress"])
            if progress.step != step:
                raise ValueError(f"progress.step: expected {step}, got {progress.step}")
        except (UserError, ValueError) as error:
            others = [other for other in self.steps() if other < step]
            write_line(
                f"{path}: the checkpoint is damaged ({error}); "
                + (f"resuming from the previous one, of step {others[-1]}" if others else "starting from the beginning")
            )
            return False
        return progress.evaluated or not evaluated

    def _prune(self) -> None:
        """Delete all checkpoints except those to keep."""
        steps = self.steps()
        losses: dict[int, float] = {}
        for step in steps:
            try:
                progress = Progress(**_read_index(self.folder / _NAME.format(step))["progress"])
            except (UserError, ValueError):
                continue  # damaged after it was written; `restore` reports it
            if progress.evaluated:
                loss = progress.history[-1]["val_loss"]
                losses[step] = float("inf") if loss is None else loss
        kept = {*steps[-self.keep :], *list(losses)[-1:]}
        if losses:
            kept.add(min(losses, key=losses.__getitem__))
        for step in steps:
            if step not in kept:
                self._delete(self.folder / _NAME.format(step))

    def _delete(self, path: Path) -> None:
        """Delete a checkpoint, or say that it cannot be deleted."""
        if path in self._undeletable:
            return
        try:
            (path / _INDEX).unlink(missing_ok=True)  # first, so that a kill cannot leave half a checkpoint
            shutil.rmtree(path)
        except OSError as error:
            self._undeletable.add(path)
            write_line(f"{path}: an old checkpoint cannot be deleted ({error.strerror}); delete it yourself")


class _Writer(HuggingFaceStorageWriter):
    """Writes each process's tensors to a safetensors file and, when all files are written, the index."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        super().__init__(str(folder), save_distributed=True)
        self._folder, self._facts = folder, facts

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        files = sorted({result.storage_data.relative_path for of_process in results for result in of_process})
        facts = {**self._facts, "files": {name: _sha256(self._folder / name) for name in files}}
        write_text(self._folder / _INDEX, json.dumps({**facts, "checksum": _checksum(facts)}, indent=1))


def _step_of(path: Path) -> int | None:
    """The step of the checkpoint in a folder, or None if the folder does not have the name of one."""
    match = re.fullmatch(r"step-(\d{8,})", path.name, re.ASCII)
    return int(match[1]) if match else None


def _read_index(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's index, as it was written: the numbers keep their types.

    Raises:
        ValueError: it has changed, or is not an index.
        UserError: the file cannot be read.
    """
    try:
        facts = json.loads(read_bytes(folder / _INDEX, "the checkpoint is incomplete"))
    except RecursionError as error:
        raise ValueError(f"{_INDEX}: nested too deeply") from error
    if not isinstance(facts, dict) or facts.pop("checksum", None) != _checksum(facts):
        raise ValueError(f"{_INDEX} has changed")
    validate(_Index, facts)
    validate(list[HistoryRow], facts["progress"]["history"])
    return facts


def _checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open_file(path, "the checkpoint is incomplete") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cause(error: BaseException) -> str:
    """A short reason for `error`; if several processes failed to save, that of the first."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]
