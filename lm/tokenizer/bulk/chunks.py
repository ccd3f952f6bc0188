"""Text in chunks that can be worked on apart, by several threads, with the same result as in one piece.

A chunk ends where a run of letters or of digits does. A pre-token of the scanner ends there too, whatever follows, and
as the patterns look at nothing that lies behind, the next chunk begins with a pre-token. No special token stands across
the border.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
import regex

from lm.errors import UserError

CHUNK_BYTES = 1 << 19
PADDING = bytes(128)  # kernels may read so far behind the text

# Not before half of a character, which might be one of a letter; `surrogateescape` makes category Cs of it.
_BORDER = regex.compile(r"(?r)(?<=[\p{L}\p{N}])(?=[^\p{L}\p{N}\p{Cs}])")
_FIRST_WINDOW = 256

Item = TypeVar("Item")
Result = TypeVar("Result")


class SpecialTokens(NamedTuple):
    """The special tokens as kernels take them: those of equal first bytes together, the longest first."""

    texts: np.ndarray  # uint8
    bounds: np.ndarray  # int64; token k is texts[bounds[k] : bounds[k + 1]]
    ids: np.ndarray  # uint32
    num_tokens: int

    @classmethod
    def of(cls, ids: dict[bytes, int]) -> "SpecialTokens":
        tokens = sorted(ids, key=lambda token: (token[0], -len(token)))
        return cls(
            np.frombuffer(b"".join(tokens) or b"\0", np.uint8),
            np.cumsum([0, *map(len, tokens)], dtype=np.int64),
            np.array([ids[token] for token in tokens] or [0], np.uint32),
            len(tokens),
        )


def cut(blocks: Iterable[bytes], special_tokens: Sequence[bytes]) -> Iterator[bytes]:
    """Divide the joined blocks anew, into chunks of about their size; a chunk without a border is as long as it takes."""
    rest = b""
    searched = 0
    for block in blocks:
        rest += block
        # Twice as long before it is searched again: text without a border costs linear time.
        if len(rest) >= 2 * searched:
            border = last_border(rest, special_tokens)
            if border:
                yield rest[:border]
                rest = rest[border:]
            searched = 0 if border else len(rest)
    if rest:
        yield rest


def last_border(data: bytes, special_tokens: Sequence[bytes]) -> int:
    """The last place in `data` where it may be cut; 0 if there is none."""
    longest = max(map(len, special_tokens), default=1)
    end = len(data) - longest + 1  # a special token that begins before would be seen whole
    window = _FIRST_WINDOW
    while end > 0:
        begin = max(0, end - window)
        text = data[begin:end].decode(errors="surrogateescape")
        for match in _BORDER.finditer(text):
            place = begin + len(text[: match.start()].encode(errors="surrogateescape"))
            around = data[max(0, place - longest + 1) : place + longest - 1]
            within = min(place, longest - 1)
            if not any(_stands_across(around, within, token) for token in special_tokens):
                return place
        if begin == 0:
            return 0
        window *= 8
    return 0


def _stands_across(data: bytes, place: int, token: bytes) -> bool:
    """Whether `token` begins before `place` and ends behind it."""
    return data.find(token, max(0, place - len(token) + 1), place + len(token) - 1) >= 0


def in_order(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """Like `map`, with that many threads, and not much further ahead than they can use."""
    if num_threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(num_threads) as threads:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(threads.submit(function, item))
                if len(waiting) > 2 * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def resolve_num_threads(num_threads: int | None) -> int:
    """The number of threads to use; by default one for each core that the process may use.

    Raises:
        UserError: it is less than 1.
    """
    if num_threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_threads < 1:
        raise UserError(f"num_threads: expected 1 or more, got {num_threads}")
    return num_threads


@cache
def code_point_classes() -> np.ndarray:
    """The class of every code point by the module `regex`, as the scanner knows them."""
    classes = np.zeros(0x110000, np.uint8)
    characters = np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    for value, pattern in enumerate((r"\p{L}+", r"\p{N}+", r"\s+"), start=1):
        for match in regex.finditer(pattern, characters):
            classes[match.start() : match.end()] = value
    return classes
