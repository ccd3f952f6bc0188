"""Text in chunks that can be worked on apart, by several threads, with the same result as in one piece.

A chunk ends where a run of letters or of digits does. A pre-token of the scanner ends there too, whatever follows, and
as the patterns look at nothing that lies behind, the next chunk begins with a pre-token. No special token stands across
the border.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
import regex

from lm.errors import UserError
from lm.tokenizer.text.fast.constants import LETTER, NUMBER, SPACE

CHUNK = 1 << 18  # characters, or bytes
PADDING = bytes(128)  # kernels may read so far behind the text

# Not before half of a character, which might be one of a letter; `surrogateescape` makes category Cs of it.
_BORDER = regex.compile(r"(?r)(?<=[\p{L}\p{N}])(?=[^\p{L}\p{N}\p{Cs}])")
_FIRST_WINDOW = 1 << 8
_LENGTH_PER_THREAD = 1 << 22  # each thread has to learn the pre-tokens anew, which takes as long as this at least

Item = TypeVar("Item")
Result = TypeVar("Result")


class SpecialTokens(NamedTuple):
    """The special tokens as kernels take them: those of equal first bytes together, the longest first."""

    texts: np.ndarray  # uint8
    bounds: np.ndarray  # int64; token k is texts[bounds[k] : bounds[k + 1]]
    ids: np.ndarray  # uint32
    num_tokens: int

    @classmethod
    def of(cls, ids: Mapping[str, int]) -> "SpecialTokens":
        by_bytes = {token.encode(): token_id for token, token_id in ids.items()}
        tokens = sorted(by_bytes, key=lambda token: (token[0], -len(token)))
        return cls(
            np.frombuffer(b"".join(tokens) or b"\0", np.uint8),
            np.cumsum([0, *map(len, tokens)], dtype=np.int64),
            np.array([by_bytes[token] for token in tokens] or [0], np.uint32),
            len(tokens),
        )


def last_border(text: str, special_tokens: Sequence[str]) -> int:
    """The last place where `text` may be cut, whatever stands before it and behind it; 0 if there is none."""
    longest = max(map(len, special_tokens), default=1)
    # All special tokens that might stand across the border are seen whole.
    for match in _BORDER.finditer(text, longest, max(longest, len(text) - longest + 1)):
        place = match.start()
        if not any(_stands_across(text, place, token) for token in special_tokens):
            return place
    return 0


def _stands_across(text: str, place: int, token: str) -> bool:
    """Whether `token` begins before `place` and ends behind it."""
    return text.find(token, place - len(token) + 1, place + len(token) - 1) >= 0


def pieces(text: str, special_tokens: Sequence[str]) -> Iterator[str]:
    """Divide a text into chunks of at most CHUNK characters; one without a border is as long as it takes."""
    begin, length = 0, CHUNK
    while begin + length < len(text):
        end = begin + length
        window = _FIRST_WINDOW
        while True:
            start = max(begin, end - window)
            border = last_border(text[start:end], special_tokens)
            if border or start == begin:
                break
            window *= 16
        if border:
            yield text[begin : start + border]
            begin, length = start + border, CHUNK
        else:
            length *= 2
    if begin < len(text):
        yield text[begin:]


def cut(blocks: Iterable[bytes], special_tokens: Sequence[str]) -> Iterator[bytes]:
    """Divide joined blocks of UTF-8 anew, into chunks of about their size or more."""
    rest = b""
    searched = 0
    for block in blocks:
        rest += block
        # Twice as long before it is searched again: text without a border costs linear time.
        if len(rest) < 2 * searched:
            continue
        window = _FIRST_WINDOW
        while True:
            tail = rest[-window:].decode(errors="surrogateescape")
            border = last_border(tail, special_tokens)
            if border or window >= len(rest):
                break
            window *= 16
        searched = len(rest)
        if border:
            end = len(rest) - len(tail[border:].encode(errors="surrogateescape"))
            yield rest[:end]
            rest = rest[end:]
            searched = 0
    if rest:
        yield rest


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


def resolve_num_threads(num_threads: int | None, length: int) -> int:
    """The number of threads for a text: by default one for each core, and no more than the text keeps busy.

    Raises:
        UserError: it is less than 1.
    """
    if num_threads is None:
        num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_threads < 1:
        raise UserError(f"num_threads: expected 1 or more, got {num_threads}")
    return min(num_threads, 1 + length // _LENGTH_PER_THREAD)


@cache
def code_point_classes() -> np.ndarray:
    """The class of every code point by the module `regex`, as the scanner knows them."""
    classes = np.zeros(0x110000, np.uint8)
    characters = np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    for value, pattern in ((LETTER, r"\p{L}+"), (NUMBER, r"\p{N}+"), (SPACE, r"\s+")):
        for match in regex.finditer(pattern, characters):
            classes[match.start() : match.end()] = value
    return classes
