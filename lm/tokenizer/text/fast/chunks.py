"""Splitting text into chunks that several threads process independently, with the same result as processing it whole.

A chunk ends where a pre-token of the pattern ends whatever the rest of the text is, or before a special token. With
GPT-2's pattern, this is after a run of letters or of numbers, or before white space. Patterns that can be compiled do
not look behind, so the next chunk begins with a pre-token. No special token crosses the split.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from lm.errors import UserError
from lm.tokenizer.text.fast import library

CHUNK_SIZE = 1 << 18  # characters, or bytes
PADDING = bytes(128)  # kernels may read this far past the end of the text

# Each thread has its own cache or table of pre-tokens to fill first, so less text per thread than this is not faster.
_LENGTH_PER_THREAD = 1 << 22

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def find_split(data: bytes, automaton: np.ndarray, special: SpecialTokens) -> int:
    """Return the last position where UTF-8 may be split, whatever precedes and follows it; 0 if there is none."""
    return library.load().find_split(
        np.frombuffer(data, np.uint8), len(data), automaton,
        special.texts, special.bounds, special.num_tokens, special.longest,
    )  # fmt: skip


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """Yield the results in the order of the items, as `map` does, computed by `num_threads` threads.

    Takes only a few items more from the iterable than the threads need.
    """
    if num_threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(num_threads) as threads:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(threads.submit(function, item))
                if len(pending) > 2 * num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


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
