"""A UTF-8 file of any size, which several threads read piece by piece."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lm.errors import UserError
from lm.tokenizer.text.fast import library
from lm.tokenizer.text.fast.chunks import PADDING, SpecialTokens, find_split


class FileSource:
    """A file; positions count bytes.

    Args:
        path: The file.
        bar: A progress bar, which counts the bytes up to the last place where the file was split.
    """

    def __init__(self, path: Path, bar: tqdm) -> None:
        self._path = path
        self._bar = bar
        self.length = path.stat().st_size

    @classmethod
    @contextmanager
    def open(cls, path: Path, description: str) -> Iterator["FileSource"]:
        """Open a file until the end of the block; the description is the label of its progress bar.

        Raises:
            UserError: The file cannot be read.
        """
        try:
            size = path.stat().st_size
            with tqdm(total=size, desc=description, unit="B", unit_scale=True, disable=None) as bar:
                yield cls(path, bar)
                bar.update(size - bar.n)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error

    def max_bytes(self, begin: int, end: int) -> int:
        return end - begin

    def read(self, begin: int, end: int, buffer: np.ndarray) -> int:
        """Write the bytes from `begin` to `end`, which begin and end with characters, to `buffer`; return their number.

        Raises:
            UserError: They are not UTF-8, or the file became shorter.
        """
        size = self._read(begin, end, buffer)
        valid = library.load().find_invalid_utf8(buffer, size)
        if valid < size:
            raise UserError(f"{self._path}: not UTF-8 at byte {begin + valid:,}; convert the file to UTF-8")
        if size < end - begin:
            raise UserError(f"{self._path}: became shorter while it was read; run this again")
        return size

    def find_split(self, begin: int, end: int, automaton: np.ndarray, special: SpecialTokens) -> int | None:
        """Return the last position between `begin` and `end` where the text may be split; None if there is none."""
        buffer = np.empty(end - begin + len(PADDING), np.uint8)
        size = self._read(begin, end, buffer)
        # The first character may have begun earlier, and the last one may be cut off.
        cut = 0
        while cut < min(size, 3) and buffer[cut] & 0xC0 == 0x80:
            cut += 1
        valid = library.load().find_invalid_utf8(buffer[cut:], size - cut)
        split = find_split(buffer[cut : cut + valid], automaton, special)
        self._bar.update(end - self._bar.n)
        return begin + cut + split if split else None

    def _read(self, begin: int, end: int, buffer: np.ndarray) -> int:
        """Read the bytes from `begin` to `end`; return their number, which is smaller if the file ends earlier."""
        size = 0
        # Each thread has a file of its own, because the position in a file is shared, and not every system has preadv.
        with self._path.open("rb", buffering=0) as file:
            file.seek(begin)
            while size < end - begin and (count := file.readinto(buffer[size : end - begin].data)):
                size += count
        return size
