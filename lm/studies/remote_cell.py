"""Training a cell on another machine of a Ray cluster, without a file system that the machines share.

The stage sends the plan of the cell, the tokenizer, and the checkpoints that it has. The machine fetches the token
files, which it keeps for the next cell, and trains in a process of its own. Checkpoints come back as they are written,
and the results at the end. If the machine is lost, another one continues from the last checkpoint that came back.
"""

import hashlib
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from platformdirs import user_cache_path
from tqdm import tqdm

from lm.atomic import atomic_write, make_folder
from lm.cluster import SharedPath, WorkerLost, flat_map, share
from lm.errors import UserError
from lm.scratch import scratch_folder
from lm.shards import SPLITS, shard_names
from lm.studies.cell_paths import CellPaths
from lm.tokens.manifest import advice, read_manifest

_MAX_ATTEMPTS = 5
_POLL_SECONDS = 0.5
_STOP_SECONDS = 30.0
_WATCH_SECONDS = 1.0
_OUTPUTS = "metrics", "curve", "timing"
_INDEX = "index.json"  # the file that is written last into the folder of a checkpoint


@dataclass(frozen=True, kw_only=True)
class CellPiece:
    """What a machine needs to train a cell.

    Attributes:
        name: The name of the cell.
        files: Small files: their path relative to the folder of the run, and their content.
        tokens: The token files: their path relative to the folder of the run, their checksum, and where they are.
    """

    name: str
    files: dict[str, bytes]
    tokens: list[tuple[str, str, SharedPath]]


@dataclass(frozen=True)
class Checkpoint:
    """A result of `run_cell`: the files of a new checkpoint, and the folders of all checkpoints that are kept."""

    files: dict[str, np.ndarray]
    kept: list[str]


@dataclass(frozen=True)
class CellEnd:
    """The last result of `run_cell`: what the stage printed, and its output files."""

    output: str
    files: dict[str, np.ndarray]


def train_remotely(paths: CellPaths, cluster: str, *, num_cpus: int, num_gpus: int) -> str:
    """Train the cell of a plan on a machine of the cluster, write its outputs, and return what its stage printed.

    Raises:
        UserError: The run failed there; the message is that of the stage. Or its machines were lost five times.
    """
    name = paths.plan.stem
    checkpoints = paths.checkpoints / name  # apart from those of runs on this machine
    attempt = 1
    while True:
        piece = _piece(paths, checkpoints, cluster)
        results = flat_map(run_cell, [piece], cluster, num_cpus=num_cpus, num_gpus=num_gpus, max_attempts=1)
        try:
            with closing(results):
                for result in results:
                    if isinstance(result, CellEnd):
                        _write_outputs(result.files, paths)
                        shutil.rmtree(checkpoints, ignore_errors=True)
                        return result.output
                    _write_checkpoint(result, checkpoints)
        except WorkerLost as error:
            if attempt == _MAX_ATTEMPTS:
                raise
            reason = str(error).partition(";")[0]
            tqdm.write(f"{name}: {reason}; continuing from the last checkpoint", file=sys.stderr)
            attempt += 1


def run_cell(piece: CellPiece) -> Iterator[Checkpoint | CellEnd]:
    """Train a cell in a folder of this machine, and yield its checkpoints and its outputs.

    Raises:
        UserError: The stage has failed.
        WorkerLost: It was killed.
    """
    with scratch_folder() as folder:
        for relative, content in piece.files.items():
            make_folder((folder / relative).parent)
            with atomic_write(folder / relative) as file:
                file.write(content)
        for relative, sha256, shared in piece.tokens:
            (folder / relative).symlink_to(_cached(shared, sha256))
        log = folder / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                _command(piece), cwd=folder, env=_environment(), stdout=file, stderr=subprocess.STDOUT
            )
        try:
            sent = set(_complete_checkpoints(folder / "checkpoints"))  # those that came with the piece
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                yield from _new_checkpoints(folder / "checkpoints", sent)
        finally:
            _stop(process)
        output = log.read_text(encoding="utf-8", errors="replace")
        where = f"{piece.name} on {os.uname().nodename}"
        if process.returncode < 0:
            raise WorkerLost(
                f"{where}: training was ended by {signal.Signals(-process.returncode).name}; check that the machine "
                "has enough memory, and run again to continue"
            )
        if process.returncode:
            lines = [line for line in output.splitlines() if line.strip()]
            errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            raise UserError(f"{where}: {(errors or lines or ['failed'])[-1]}")
        yield CellEnd(output, _read_files(folder, [*_OUTPUTS, "tracking"]))


def _piece(paths: CellPaths, checkpoints: Path, cluster: str) -> CellPiece:
    files = {"params.yaml": paths.params.read_bytes(), f"plan/{paths.plan.name}": paths.plan.read_bytes()}
    for room, folder in (("tokenizer", paths.tokenizer), ("checkpoints", checkpoints)):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                files[f"{room}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    manifest = read_manifest(paths.tokens)
    files["tokens/manifest.json"] = (paths.tokens / "manifest.json").read_bytes()
    tokens = []
    for split in SPLITS:
        shards = manifest["splits"][split]["shards"]
        for name, shard in zip(shard_names(split, len(shards), ".bin"), shards, strict=True):
            tokens.append((f"tokens/{name}", shard["sha256"], share(paths.tokens / name, cluster)))
    return CellPiece(name=paths.plan.stem, files=files, tokens=tokens)


def _command(piece: CellPiece) -> list[str]:
    folders = [word for name in ("tokenizer", "tokens", "checkpoints", "tracking") for word in (f"--{name}", name)]
    outputs = [word for name in _OUTPUTS for word in (f"--{name}", f"{name}/{piece.name}")]
    plan = ["--params", "params.yaml", "--plan", f"plan/{piece.name}.json"]
    return [sys.executable, "-m", "lm.studies.remote_cell", str(os.getpid()), *plan, *folders, *outputs]


def _environment() -> dict[str, str]:
    """The code comes with the work, and is found where this process has found it."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _cached(shared: SharedPath, sha256: str) -> Path:
    """Return the path of a token file on this machine, which fetches it once and verifies its checksum.

    Raises:
        UserError: The file cannot be read or written, or has changed since it was encoded.
    """
    if shared.is_here():
        return shared.path
    folder = user_cache_path("lm") / "tokens"
    make_folder(folder)
    path = folder / f"{sha256}.bin"
    with FileLock(folder / f"{sha256}.lock"):
        if not path.exists():
            copy = shared.copy_to(folder / f"{sha256}.unverified")
            with copy.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                copy.unlink()
                raise UserError(
                    f"{shared.path}: changed since it was written (its checksum is not the one in the manifest); "
                    f"{advice('encode_memmap')}"
                )
            copy.replace(path)
    return path


def _new_checkpoints(folder: Path, sent: set[str]) -> Iterator[Checkpoint]:
    """Yield the complete checkpoints in `folder` whose names are not in `sent`, and add them."""
    kept = _complete_checkpoints(folder)
    for name in kept:
        if name not in sent:
            sent.add(name)
            try:
                yield Checkpoint(_read_files(folder, [name]), kept)
            except FileNotFoundError:
                continue  # training has deleted it, because there are newer ones


def _complete_checkpoints(folder: Path) -> list[str]:
    """The folders of checkpoints with an index, relative to `folder`."""
    return sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob(f"*/*/{_INDEX}"))


def _read_files(folder: Path, names: list[str]) -> dict[str, np.ndarray]:
    """The contents of the files in some subfolders, by their path relative to `folder`."""
    paths = [path for name in names for path in sorted((folder / name).rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): np.fromfile(path, np.uint8) for path in paths}


def _write_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint, its index last, and delete those that the machine no longer keeps."""
    for relative in sorted(checkpoint.files, key=lambda name: name.endswith(f"/{_INDEX}")):
        make_folder((folder / relative).parent)
        with atomic_write(folder / relative) as file:
            file.write(checkpoint.files[relative].data)
    for run in {Path(name).parent for name in checkpoint.kept}:
        for path in (folder / run).iterdir():
            if path.is_dir() and (run / path.name).as_posix() not in checkpoint.kept:
                shutil.rmtree(path)


def _write_outputs(files: dict[str, np.ndarray], paths: CellPaths) -> None:
    for relative, content in files.items():
        room, _, rest = relative.partition("/")
        path = paths.tracking / rest if room == "tracking" else paths.outputs.get(room)
        if path is not None:
            make_folder(path.parent)
            with atomic_write(path) as file:
                file.write(content.data)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Let a run that is not needed any more end."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _train_here() -> None:
    """Run stages/train_cell.py in this process, and end with the worker that has started it."""
    worker, *arguments = sys.argv[1:]
    threading.Thread(target=_end_with, args=(int(worker),), daemon=True).start()
    sys.argv[1:] = arguments
    runpy.run_module("stages.train_cell", run_name="__main__", alter_sys=True)


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, even if that was killed."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    _train_here()
