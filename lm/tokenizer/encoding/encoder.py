"""Encoding in plain Python, one pre-token at a time: for short texts such as prompts, and for every pattern."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise

from lm.errors import UserError
from lm.tokenizer.text.pretokenization import PreTokenizer

_NO_SYMBOL = -1  # a position whose symbol was merged into its left neighbor, or the end of the pre-token


class Encoder:
    """Applies merges to pre-tokens.

    Args:
        pair_symbols: The symbol that each mergeable pair of symbols makes. Symbols 0 to 255 are the bytes; the results
            of the merges follow in order.
        symbol_ids: The id of each symbol.
        special_ids: The id of each special token.
        whole_ids: The id of each token that a pre-token with its bytes becomes without any merges.
    """

    def __init__(
        self,
        pair_symbols: Mapping[tuple[int, int], int],
        symbol_ids: Sequence[int],
        special_ids: Mapping[str, int],
        whole_ids: Mapping[bytes, int],
    ) -> None:
        self._whole_ids = whole_ids
        self._pair_symbols = pair_symbols
        self._symbol_ids = symbol_ids
        self._special_ids = special_ids
        self._cache = _Cache(self.merge)

    def encode(self, chunks: Iterable[str], pre_tokenizer: PreTokenizer) -> Iterator[int]:
        """Yield the ids of the concatenated chunks."""
        for pre_tokens, follower in pre_tokenizer.stream(chunks):
            yield from chain.from_iterable(map(self._cache.__getitem__, pre_tokens))
            if follower:
                yield self._special_ids[follower]

    def merge(self, pre_token: str) -> tuple[int, ...]:
        """Return the ids of a pre-token: repeatedly merge the pair that makes the smallest symbol, the leftmost first.

        A heap holds `merged, position` for every pair that can be merged, and for some that are broken up already. So
        the time is roughly linear in the length, even for a pre-token of a million letters.
        """
        data = to_utf8(pre_token)
        if data in self._whole_ids:
            return (self._whole_ids[data],)
        pair_symbols = self._pair_symbols
        symbols = [*data, _NO_SYMBOL]
        pending = [
            (pair_symbols[pair], position) for position, pair in enumerate(pairwise(symbols)) if pair in pair_symbols
        ]
        heapq.heapify(pending)
        # The links form a ring: the end, at index -1, comes before the first symbol.
        next_position = [*range(1, len(symbols)), 0]
        previous_position = list(range(-1, len(symbols) - 1))
        while pending:
            merged, position = heapq.heappop(pending)
            second = next_position[position]
            # Another merge may have broken up the pair after it was added to the heap.
            if pair_symbols.get((symbols[position], symbols[second])) != merged:
                continue
            symbols[position], symbols[second] = merged, _NO_SYMBOL
            before, after = previous_position[position], next_position[second]
            next_position[position], previous_position[after] = after, position
            for left in (before, position):
                next_merged = pair_symbols.get((symbols[left], symbols[next_position[left]]))
                if next_merged is not None:
                    heapq.heappush(pending, (next_merged, left))
        return tuple([self._symbol_ids[symbol] for symbol in symbols if symbol != _NO_SYMBOL])


class _Cache(dict[str, tuple[int, ...]]):
    """The ids of pre-tokens, computed on first use. Cleared when it is full; long pre-tokens are not stored."""

    _MAX_ENTRIES = 1 << 15
    _MAX_LENGTH = 64

    def __init__(self, encode: Callable[[str], tuple[int, ...]]) -> None:
        self._encode = encode

    def __missing__(self, pre_token: str) -> tuple[int, ...]:
        ids = self._encode(pre_token)
        if len(pre_token) <= self._MAX_LENGTH:
            if len(self) >= self._MAX_ENTRIES:
                self.clear()
            self[pre_token] = ids
        return ids


@contextmanager
def reject_surrogates() -> Iterator[None]:
    """Turn the error for text that contains half of a surrogate pair into a UserError."""
    try:
        yield
    except UnicodeEncodeError as error:
        code_point = ord(error.object[error.start])
        raise UserError(
            f"the text contains U+{code_point:04X}, half of a surrogate pair, which is not a character"
        ) from error


def to_utf8(text: str) -> bytes:
    with reject_surrogates():
        return text.encode()
