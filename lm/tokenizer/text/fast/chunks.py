"""Splitting text into pieces that several threads process independently, with the same result as processing it whole.

A piece ends where a pre-token of the pattern ends whatever the rest of the text is, or before a special token. With
GPT-2's pattern, this is after a run of letters or of numbers, or before white space. Patterns that can be compiled do
not look behind, so the next piece begins with a pre-token. No special token crosses the split.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from lm.errors import UserError
from lm.tokenizer.text.fast import library

# The characters or bytes of a piece: large, so that handing it to a thread takes little of the time, unless
# each of several threads would get only a few.
_MIN_PIECE_LENGTH, _MAX_PIECE_LENGTH = 1 << 18, 1 << 20
_PIECES_PER_THREAD = 8
_NEARBY = 256  # characters or bytes; most texts may be split in any part of this length

PADDING = bytes(128)  # kernels may read this far past the end of the text

# With less text than this, a second thread made counting slower; encoding would gain from 2 MB on.
_LENGTH_PER_THREAD = 1 << 22


class SpecialTokens(NamedTuple):
    """The special tokens as arrays for kernels: sorted by their first byte, then the longest first."""

    texts: np.ndarray  # uint8, the bytes of all special tokens
    bounds: np.ndarray  # int64; special token k is texts[bounds[k] : bounds[k + 1]]
    ids: np.ndarray  # uint32
    num_tokens: int
    longest: int  # the length of the longest one in bytes; 1 without special tokens

    @classmethod
    def from_ids(cls, ids: Mapping[str, int]) -> "SpecialTokens":
        by_bytes = {token.encode(): token_id for token, token_id in ids.items()}
        tokens = sorted(by_bytes, key=lambda token: (token[0], -len(token)))
        return cls(
            np.frombuffer(b"".join(tokens) or b"\0", np.uint8),
            np.cumsum([0, *map(len, tokens)], dtype=np.int64),
            np.array([by_bytes[token] for token in tokens] or [0], np.uint32),
            len(tokens),
            max(map(len, tokens), default=1),
        )


class Source(Protocol):
    """A text that several threads read: a string or a file. Positions count characters or bytes."""

    length: int

    def max_bytes(self, begin: int, end: int) -> int:
        """Return the greatest number of bytes that the text from `begin` to `end` may have."""

    def read(self, begin: int, end: int, buffer: np.ndarray) -> int:
        """Write the text from `begin` to `end` as UTF-8 to `buffer`; return the number of bytes."""

    def find_split(self, begin: int, end: int, automaton: np.ndarray, special: SpecialTokens) -> int | None:
        """Return the last position between `begin` and `end` where the text may be split; None if there is none."""


def piece_length(length: int, num_threads: int) -> int:
    """Return the length of the pieces in which a number of threads process a text."""
    if num_threads == 1:
        return _MAX_PIECE_LENGTH
    return min(max(length // (_PIECES_PER_THREAD * num_threads), _MIN_PIECE_LENGTH), _MAX_PIECE_LENGTH)


def split_source(
    source: Source, length: int, automaton: np.ndarray, special: SpecialTokens
) -> Iterator[tuple[int, int]]:
    """Yield where pieces of about `length`, or longer, begin and end.

    A piece ends at the last place before a multiple of the length where the text may be split; if there is none, the
    piece continues to the next multiple.
    """
    begin = 0
    for position in range(length, source.length, length):
        for window in (_NEARBY, length):
            split = source.find_split(max(begin, position - window), position, automaton, special)
            if split:
                yield begin, split
                begin = split
                break
    if begin < source.length:
        yield begin, source.length


def split_blocks(blocks: Iterable[bytes], automaton: np.ndarray, special: SpecialTokens) -> Iterator[bytes]:
    """Split the concatenation of blocks of UTF-8 into chunks of about the size of the blocks, or longer.

    A chunk ends at the last place in a block where the text may be split; if there is none, the next block is added.
    """
    pending: list[bytes] = []
    for block in blocks:
        if split := find_split(block, automaton, special):
            yield b"".join([*pending, memoryview(block)[:split]])
            pending = [block[split:]]
        else:
            pending.append(block)
    if rest := b"".join(pending):
        yield rest


def find_split(data: bytes | np.ndarray, automaton: np.ndarray, special: SpecialTokens) -> int:
    """Return the last position where UTF-8 may be split, whatever precedes and follows it; 0 if there is none."""
    return library.load().find_split(
        np.frombuffer(data, np.uint8), len(data), automaton,
        special.texts, special.bounds, special.num_tokens, special.longest,
    )  # fmt: skip


def resolve_num_threads(num_threads: int | None, length: int) -> int:
    """Return the number of threads to use for a text of `length` characters or bytes.

    The default is one thread per core. No more threads are used than the text keeps busy.

    Raises:
        UserError: `num_threads` is less than 1.
    """
    if num_threads is None:
        num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_threads < 1:
        raise UserError(f"num_threads: expected 1 or more, got {num_threads}")
    return min(num_threads, 1 + length // _LENGTH_PER_THREAD)
