"""Reading a UTF-8 file of any size as checked bytes, block by block."""

import codecs
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lm.errors import UserError
from lm.tokenizer.text.fast.build import load
from lm.tokenizer.text.fast.chunks import CHUNK, PADDING


def read_blocks(path: Path, progress: str, block_bytes: int = CHUNK) -> Iterator[bytes]:
    """Yield the bytes of `path`, characters whole, under a progress bar named `progress`.

    Args:
        block_bytes: 4 at least, the length of the longest character.

    Raises:
        UserError: the file cannot be read, or holds bytes that are not UTF-8.
    """
    buffer = np.empty(block_bytes + len(PADDING), np.uint8)
    offset = 0  # of the buffer in the file
    kept = 0  # bytes of a character that the last block cut
    try:
        with path.open("rb") as file, tqdm(total=path.stat().st_size, desc=progress, unit="B", unit_scale=True) as bar:
            while count := file.readinto(buffer[kept:block_bytes]):
                size = kept + count
                valid = load().find_invalid(buffer, size)
                rest = buffer[valid:size].tobytes()
                if not _may_go_on(rest):
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


def _not_utf8(path: Path, place: int) -> UserError:
    return UserError(f"{path}: not UTF-8 at byte {place:,}; convert the file to UTF-8")


def _may_go_on(rest: bytes) -> bool:
    """Whether bytes that are not UTF-8 may be the beginning of a character."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(rest)
    except UnicodeDecodeError:
        return False
    return True
