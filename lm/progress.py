"""The folder of an unfinished stage: its lock, and a record of what is done, from which the next run continues."""

import json
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout

from lm.atomic import atomic_write, make_folder, translate_write_errors
from lm.errors import UserError

NAME = "progress.npz"
_SAVE_SECONDS = 10.0
_MAX_SHARE = 0.05  # of the time is spent on writing records, which may have gigabytes

# What a zip file raises of which any byte may have changed.
_DAMAGE = (OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError, BadZipFile, zlib.error)


@contextmanager
def lock_folder(folder: Path, work: str) -> Iterator[None]:
    """Lock a folder, which is created if needed, so that no other process works in it.

    The system releases the lock when the process dies. If only `dvc` is killed, its stage may still be running when the
    next `dvc repro` starts it again.

    Args:
        folder: The folder.
        work: A name of the work for the message, such as "download".

    Raises:
        UserError: Another process holds the lock, or the folder is not writable.
    """
    make_folder(folder)
    lock = FileLock(folder / "lock", blocking=False)
    with translate_write_errors(folder):
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(f"{folder}: another {work} is running in this folder; wait for it to finish") from error
    try:
        yield
    finally:
        lock.release()


class ProgressRecord:
    """The file `progress.npz` with a state, which is a JSON object, and arrays.

    Args:
        folder: The folder of the file, which must exist when it is written.
        identity: What determines the result of the work; a record with another identity is not read.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._path, self._identity = folder / NAME, identity
        self._due = time.monotonic() + _SAVE_SECONDS

    def read(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the state and the arrays; both are empty if there is no record of this work, or it is damaged."""
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as contents:
                arrays = dict(contents)
                record = json.loads(arrays.pop("record").tobytes())
                if record["identity"] == self._identity:
                    return record["state"], arrays
        except _DAMAGE:
            pass
        return {}, {}

    @property
    def is_due(self) -> bool:
        """Whether it is time to write the next record: ten seconds after the last one, or later if that took long."""
        return time.monotonic() > self._due

    def write(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Replace the record.

        Raises:
            UserError: It cannot be written.
        """
        start = time.monotonic()
        record = json.dumps({"identity": self._identity, "state": state}).encode()
        contents: dict[str, Any] = {"record": np.frombuffer(record, np.uint8), **arrays}
        with atomic_write(self._path) as file:
            np.savez(file, **contents)
        end = time.monotonic()
        self._due = end + max(_SAVE_SECONDS, (end - start) / _MAX_SHARE)

    def delete(self) -> None:
        """Delete the record, because it is about to be no longer true."""
        self._path.unlink(missing_ok=True)
