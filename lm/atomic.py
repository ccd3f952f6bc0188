"""Write a file whole or not at all, and say in one line why it could not be written."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lm.errors import UserError

# A full disk, a full quota, a file larger than the file system or `ulimit -f` allows.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Turn a failed write to `path`, a file or a folder, into a UserError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(f"{path}: the disk is full ({error.strerror}); free some space and run again") from error
        raise UserError(f"{path}: cannot be written ({error.strerror}); check the path and its permissions") from error


def make_folder(path: Path) -> None:
    """Make a folder that can be written to, if it is not there yet, so that no work is lost on it later.

    Raises:
        UserError: it cannot be made or written to.
    """
    with translate_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A new file in an existing folder: it takes the name `path` when the block ends; an exception in it deletes it.

    The bytes go to `path` + ".part" first, so a kill at any moment leaves the old `path` or none, never half a file.

    Raises:
        UserError: the file cannot be written, or an OSError left the block.
    """
    part = path.with_name(path.name + ".part")
    with translate_write_errors(path):
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # or the new name could outlive a power cut, and its content not
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all, its line ends as they are."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: dict[str, Any] | list[Any]) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
