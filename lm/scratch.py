"""Folders for files that are needed for a moment, and deleted even if their process is killed."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from filelock import FileLock, Timeout

_PREFIX = "lm-scratch-"
_LOCK = ".lock"
_NEW_SECONDS = 60.0  # within which a process locks the folder that it has created


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Create a folder for temporary files, which is deleted when the block ends.

    A process that is killed cannot delete its folder. Every call therefore also deletes the folders of processes that
    have died: their locks are free.
    """
    _delete_abandoned()
    with TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as folder, FileLock(Path(folder) / _LOCK):
        yield Path(folder)


def _delete_abandoned() -> None:
    for folder in Path(gettempdir()).glob(f"{_PREFIX}*"):
        # Those of other users cannot be deleted, and another process may delete the same one.
        with suppress(OSError, Timeout):
            if time.time() - folder.stat().st_mtime > _NEW_SECONDS:
                with FileLock(folder / _LOCK, blocking=False):
                    shutil.rmtree(folder)
