"""Strings as UTF-8 for kernels, converted by the thread that needs them and without holding the GIL."""

import sys
from collections.abc import Sequence
from ctypes import string_at
from functools import cache

import numpy as np

from lm.tokenizer.text.fast import library
from lm.tokenizer.text.fast.chunks import SpecialTokens, find_split

MAX_CHARACTER_BYTES = 4

# Strings of 1, 1, 2 and 4 bytes per character, by the encoding that has the same bytes.
_SAMPLES = {"ascii": "abc", "latin-1": "é", "utf-16-le": "本", "utf-32-le": "🙂"}


class StringSource:
    """A text in memory, which several threads read piece by piece; positions count characters."""

    def __init__(self, text: str) -> None:
        self._text = [text]
        self.length = len(text)

    def max_bytes(self, begin: int, end: int) -> int:
        """Return the greatest number of bytes that these characters may have."""
        return end - begin if self._text[0].isascii() else MAX_CHARACTER_BYTES * (end - begin)

    def read(self, begin: int, end: int, buffer: np.ndarray) -> int:
        """Write the characters from `begin` to `end` as UTF-8 to `buffer`; return the number of bytes.

        Raises:
            UnicodeEncodeError: There is half of a surrogate pair among them.
        """
        ends = np.empty(1, np.int64)
        read_strings(self._text, np.array([begin]), np.array([end]), buffer, ends)
        return int(ends[0])

    def find_split(self, begin: int, end: int, automaton: np.ndarray, special: SpecialTokens) -> int | None:
        """Return the last position between `begin` and `end` where the text may be split; None if there is none."""
        # A surrogate becomes an error only when the piece with it is read: the first one of the text is reported.
        data = self._text[0][begin:end].encode("utf-8", "surrogatepass")
        split = find_split(data, automaton, special)
        return begin + len(data[:split].decode("utf-8", "surrogatepass")) if split else None


def read_strings(
    texts: Sequence[str], begins: np.ndarray, ends: np.ndarray, buffer: np.ndarray, buffer_ends: np.ndarray
) -> None:
    """Write the characters begins[k] to ends[k] of each text as UTF-8 to `buffer`, one text after the other.

    Args:
        texts: The texts.
        begins, ends: int64, positions in each text.
        buffer: uint8, output with space for 4 bytes per character, and 16 more.
        buffer_ends: int64, output: where each text ends.

    Raises:
        UnicodeEncodeError: There is half of a surrogate pair.
    """
    layout = string_layout()
    if layout is not None and {*map(type, texts)} == {str}:
        addresses = np.fromiter(map(id, texts), np.int64, len(texts))
        if library.load().read_strings(addresses, begins, ends, len(texts), layout, buffer, buffer_ends):
            return
    at = 0
    for number, (text, begin, end) in enumerate(zip(texts, begins.tolist(), ends.tolist(), strict=True)):
        data = text[begin:end].encode()
        buffer[at : at + len(data)] = np.frombuffer(data, np.uint8)
        at += len(data)
        buffer_ends[number] = at


@cache
def string_layout() -> np.ndarray | None:
    """Return where this version of Python keeps the parts of a string, in the order of `STATE_AT` and following.

    The header begins with that of every object, the length and the hash; a null character follows the others. None if
    that is not what the samples look like.
    """
    samples = {codec: text * 2 for codec, text in _SAMPLES.items()}  # new objects, with nothing but their characters
    state_at = object.__basicsize__ + 16
    ascii_at = sys.getsizeof(samples["ascii"]) - len(samples["ascii"]) - 1
    other_at = sys.getsizeof(samples["latin-1"]) - len(samples["latin-1"]) - 1
    for kind_shift in (2, 16):  # up to Python 3.13, and from 3.14 on
        layout = [state_at, ascii_at, other_at, kind_shift]
        if all(_matches(text, codec, *layout) for codec, text in samples.items()):
            return np.array(layout, np.int64)
    return None


def _matches(text: str, codec: str, state_at: int, ascii_at: int, other_at: int, kind_shift: int) -> bool:
    characters = text.encode(codec)
    state = int.from_bytes(string_at(id(text) + state_at, 4), "little") >> kind_shift
    address = id(text) + (ascii_at if text.isascii() else other_at)
    return (
        state & 0b11111 == len(characters) // len(text) | 1 << 3 | text.isascii() << 4
        and string_at(address, len(characters)) == characters
    )
