"""A record of what an interrupted stage has finished, from which the next run of the same work continues."""

import json
import time
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from lm.atomic import atomic_write

NAME = "progress.npz"
SAVE_SECONDS = 10.0


class ProgressRecord:
    """The file `progress.npz` with a state, which is a JSON object, and arrays.

    Args:
        folder: The folder of the file, which must exist when it is written.
        identity: What determines the result of the work; a record with another identity is not read.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._path, self._identity = folder / NAME, identity
        self._written = time.monotonic()

    def read(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the state and the arrays; both are empty if there is no record of this work, or it is damaged."""
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as contents:
                arrays = dict(contents)
                record = json.loads(arrays.pop("record").tobytes())
                if record["identity"] == self._identity:
                    return record["state"], arrays
        except (OSError, EOFError, ValueError, KeyError, BadZipFile):
            pass
        return {}, {}

    @property
    def is_due(self) -> bool:
        """Whether the last record is old enough for the next one to be worth writing."""
        return time.monotonic() - self._written > SAVE_SECONDS

    def write(self, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Replace the record.

        Raises:
            UserError: It cannot be written.
        """
        record = json.dumps({"identity": self._identity, "state": state}).encode()
        contents: dict[str, Any] = {"record": np.frombuffer(record, np.uint8), **arrays}
        with atomic_write(self._path) as file:
            np.savez(file, **contents)
        self._written = time.monotonic()

    def delete(self) -> None:
        """Delete the record, because it is about to be no longer true."""
        self._path.unlink(missing_ok=True)
