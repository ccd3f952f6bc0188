"""Reading a UTF-8 text file of any size in constant memory, with the exact place of a byte that is not UTF-8."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from lm.errors import UserError

_CHUNK_BYTES = 1 << 16


def read_text(path: Path, progress: str, chunk_bytes: int = _CHUNK_BYTES) -> Iterator[str]:
    """Yield the text of `path` piece by piece, line ends unchanged, under a progress bar named `progress`.

    Raises:
        UserError: the file cannot be read, or holds bytes that are not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file, tqdm(total=path.stat().st_size, desc=progress, unit="B", unit_scale=True) as bar:
            while chunk := file.read(chunk_bytes):
                yield _decode(decoder, chunk, file.tell() - len(chunk), path)
                bar.update(len(chunk))
            yield _decode(decoder, b"", file.tell(), path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _decode(decoder: codecs.IncrementalDecoder, chunk: bytes, offset: int, path: Path) -> str:
    """The text of `chunk`, which starts at byte `offset` of the file; an empty chunk ends it."""
    pending, _ = decoder.getstate()
    try:
        return decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        place = offset - len(pending) + error.start
        raise UserError(f"{path}: not UTF-8 at byte {place:,}; convert the file to UTF-8") from error
