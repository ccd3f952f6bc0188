"""Write files atomically, and report a failed write in one line."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lm.errors import UserError

# The disk is full, the quota is used up, or the file exceeds the limit of the file system or of `ulimit -f`.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Convert an OSError raised while writing to `path`, a file or a folder, into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise UserError(f"{path}: the disk is full ({error.strerror}); free some space and run again") from error
        raise UserError(f"{path}: cannot be written ({error.strerror}); check the path and its permissions") from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents if they do not exist, and check that the folder is writable.

    Call it before long work whose result goes into the folder, so that a bad path fails at once.

    Raises:
        UserError: If the folder cannot be created or is not writable.
    """
    check_folder(path)
    with translate_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)


def check_folder(path: Path) -> None:
    """Check that a folder is writable or can be created, without creating it.

    Raises:
        UserError: If it is not a folder, or one of its parents is not, or it cannot be written to.
    """
    nearest = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    with translate_write_errors(nearest):
        if not nearest.is_dir():
            number = errno.EEXIST if nearest == path else errno.ENOTDIR
            raise OSError(number, os.strerror(number))
        if not os.access(nearest, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def require_new_folder(path: Path) -> None:
    """Check that a folder does not exist or is empty, so that writing to it cannot overwrite anything.

    Raises:
        UserError: If it contains anything, is not a folder, or cannot be created.
    """
    check_folder(path)
    with translate_write_errors(path):
        first = min(path.iterdir(), default=None) if path.exists() else None
    if first is not None:
        raise UserError(f"{first}: already exists; choose a new or empty folder")


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a new file in an existing folder and rename it to `path` when the block ends.

    The data is first written to `path` + ".part", so a process killed at any moment leaves the previous version of
    `path`, if any, and never a partial file. If the block raises an exception, the new file is deleted.

    Raises:
        UserError: If the file cannot be written, or the block raises an OSError.
    """
    part = path.with_name(path.name + ".part")
    with translate_write_errors(path):
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # otherwise a power failure could keep the new name but lose the content
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically as UTF-8, without converting line endings."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: dict[str, Any] | list[Any]) -> None:
    """Write `value` atomically as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
