"""Reading a UTF-8 text file of any size in constant memory; errors name the offset of a byte that is not UTF-8."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from lm.errors import UserError

_CHUNK_BYTES = 1 << 16


def read_text(path: Path, description: str, chunk_bytes: int = _CHUNK_BYTES) -> Iterator[str]:
    """Yield the text of a file in chunks, with its line endings unchanged.

    Args:
        path: The file.
        description: The label of the progress bar.
        chunk_bytes: How many bytes to read at a time.

    Raises:
        UserError: The file cannot be read, or contains bytes that are not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with (
            path.open("rb") as file,
            tqdm(total=path.stat().st_size, desc=description, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := file.read(chunk_bytes):
                yield _decode(decoder, chunk, file.tell() - len(chunk), path)
                bar.update(len(chunk))
            yield _decode(decoder, b"", file.tell(), path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _decode(decoder: codecs.IncrementalDecoder, chunk: bytes, offset: int, path: Path) -> str:
    """Return the text of `chunk`, which starts at byte `offset` of the file; an empty chunk marks the end."""
    pending, _ = decoder.getstate()
    try:
        return decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        position = offset - len(pending) + error.start
        raise UserError(f"{path}: not UTF-8 at byte {position:,}; convert the file to UTF-8") from error
