"""Reading a UTF-8 file of any size in blocks of validated bytes."""

import codecs
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lm.errors import UserError
from lm.tokenizer.text.fast import library
from lm.tokenizer.text.fast.chunks import CHUNK_SIZE, PADDING


def read_blocks(path: Path, description: str, block_bytes: int = CHUNK_SIZE) -> Iterator[bytes]:
    """Yield the bytes of a file in blocks that never split a character.

    Args:
        path: The file.
        description: The label of the progress bar.
        block_bytes: The largest size of a block; at least 4, the length of the longest character.

    Raises:
        UserError: The file cannot be read, or contains bytes that are not UTF-8.
    """
    buffer = np.empty(block_bytes + len(PADDING), np.uint8)
    offset = 0  # of the buffer in the file
    kept = 0  # bytes of a character that the previous block cut
    try:
        with (
            path.open("rb") as file,
            tqdm(total=path.stat().st_size, desc=description, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while count := file.readinto(buffer[kept:block_bytes].data):
                size = kept + count
                valid = library.load().find_invalid_utf8(buffer, size)
                rest = buffer[valid:size].tobytes()
                if not _is_incomplete(rest):
                    raise _not_utf8(path, offset + valid)
                yield buffer[:valid].tobytes()
                bar.update(count)
                offset += valid
                kept = len(rest)
                buffer[:kept] = np.frombuffer(rest, np.uint8)
            if kept:
                raise _not_utf8(path, offset)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _not_utf8(path: Path, position: int) -> UserError:
    return UserError(f"{path}: not UTF-8 at byte {position:,}; convert the file to UTF-8")


def _is_incomplete(rest: bytes) -> bool:
    """Return whether bytes that are not UTF-8 may be the beginning of a character (or are empty)."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(rest)
    except UnicodeDecodeError:
        return False
    return True
