"""Splitting text into chunks that several threads process independently, with the same result as processing it whole.

A chunk ends where a run of letters or of digits ends. A pre-token of GPT-2's pattern ends there too, whatever follows,
and the pattern never looks behind, so the next chunk begins with a pre-token. No special token crosses the split.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
import regex

from lm.errors import UserError
from lm.tokenizer.text.fast.constants import LETTER, NUMBER, SPACE

CHUNK_SIZE = 1 << 18  # characters, or bytes
PADDING = bytes(128)  # kernels may read this far past the end of the text

# Not before an incomplete character, since the whole character might be a letter; with `surrogateescape`, its bytes
# decode to characters of category Cs.
_SPLIT_POINT = regex.compile(r"(?r)(?<=[\p{L}\p{N}])(?=[^\p{L}\p{N}\p{Cs}])")
_FIRST_WINDOW = 1 << 8

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

    @classmethod
    def from_ids(cls, ids: Mapping[str, int]) -> "SpecialTokens":
        by_bytes = {token.encode(): token_id for token, token_id in ids.items()}
        tokens = sorted(by_bytes, key=lambda token: (token[0], -len(token)))
        return cls(
            np.frombuffer(b"".join(tokens) or b"\0", np.uint8),
            np.cumsum([0, *map(len, tokens)], dtype=np.int64),
            np.array([by_bytes[token] for token in tokens] or [0], np.uint32),
            len(tokens),
        )


def find_split(text: str, special_tokens: Sequence[str]) -> int:
    """Return the last position where `text` may be split, whatever precedes and follows it; 0 if there is none."""
    longest = max(map(len, special_tokens), default=1)
    # Stay this far from both ends, so that every special token that might cross the split is seen completely.
    for match in _SPLIT_POINT.finditer(text, longest, max(longest, len(text) - longest + 1)):
        position = match.start()
        if not any(_crosses(text, position, token) for token in special_tokens):
            return position
    return 0


def _crosses(text: str, position: int, token: str) -> bool:
    """Return whether `token` occurs in `text` across `position`."""
    return text.find(token, position - len(token) + 1, position + len(token) - 1) >= 0


def split_text(text: str, special_tokens: Sequence[str]) -> Iterator[str]:
    """Split a text into chunks of at most CHUNK_SIZE characters; a chunk without a place to split it is longer."""
    begin, length = 0, CHUNK_SIZE
    while begin + length < len(text):
        end = begin + length
        window = _FIRST_WINDOW
        while True:
            start = max(begin, end - window)
            split = find_split(text[start:end], special_tokens)
            if split or start == begin:
                break
            window *= 16
        if split:
            yield text[begin : start + split]
            begin, length = start + split, CHUNK_SIZE
        else:
            length *= 2
    if begin < len(text):
        yield text[begin:]


def split_blocks(blocks: Iterable[bytes], special_tokens: Sequence[str]) -> Iterator[bytes]:
    """Split the concatenation of blocks of UTF-8 into chunks of about the size of the blocks, or longer."""
    rest = b""
    searched = 0
    for block in blocks:
        rest += block
        # Search again only when the text has doubled, so that text without a place to split it takes linear time.
        if len(rest) < 2 * searched:
            continue
        window = _FIRST_WINDOW
        while True:
            tail = rest[-window:].decode(errors="surrogateescape")
            split = find_split(tail, special_tokens)
            if split or window >= len(rest):
                break
            window *= 16
        searched = len(rest)
        if split:
            end = len(rest) - len(tail[split:].encode(errors="surrogateescape"))
            yield rest[:end]
            rest = rest[end:]
            searched = 0
    if rest:
        yield rest


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


@cache
def code_point_classes() -> np.ndarray:
    """Return the class of every code point for the scanner, as the `regex` module defines it."""
    classes = np.zeros(0x110000, np.uint8)
    characters = np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    for value, pattern in ((LETTER, r"\p{L}+"), (NUMBER, r"\p{N}+"), (SPACE, r"\s+")):
        for match in regex.finditer(pattern, characters):
            classes[match.start() : match.end()] = value
    return classes
