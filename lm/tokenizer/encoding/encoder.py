"""Encoding pre-token by pre-token in plain Python: for a prompt, and for any pattern."""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain

from lm.errors import UserError
from lm.tokenizer.text.pretokenization import PreTokenizer

_GONE = -1  # no token: one that was merged into its left neighbour, or the end of the pre-token


class PlainEncoder:
    """Merges as pairs of symbols, the bytes and then the products of the merges in their order.

    Args:
        pair_symbols: the symbol that each pair of symbols makes.
        symbol_ids: the id of each symbol.
        special_ids: the id of each special token.
    """

    def __init__(
        self, pair_symbols: Mapping[tuple[int, int], int], symbol_ids: Sequence[int], special_ids: Mapping[str, int]
    ) -> None:
        self._pair_symbols = pair_symbols
        self._symbol_ids = symbol_ids
        self._special_ids = special_ids
        self._cache = _Cache(self._merge)

    def encode(self, chunks: Iterable[str], pre_tokenizer: PreTokenizer) -> Iterator[int]:
        """Yield the ids of the joined chunks."""
        for pre_tokens, follower in pre_tokenizer.stream(chunks):
            yield from chain.from_iterable(map(self._cache.__getitem__, pre_tokens))
            if follower:
                yield self._special_ids[follower]

    def _merge(self, pre_token: str) -> tuple[int, ...]:
        """Apply the merges in order, each wherever its pair stands, from left to right.

        An index holds the places of every pair that can be merged, so time is about linear in the length: a line of a
        million letters is no trap. The places are looked up by the symbol that the merge makes, and since a symbol
        takes part only in later merges, the next merge is always the least symbol.
        """
        pair_symbols = self._pair_symbols
        symbols = [*to_utf8(pre_token), _GONE]
        places = defaultdict(list)
        for place, pair in enumerate(zip(symbols, symbols[1:])):
            if pair in pair_symbols:
                places[pair_symbols[pair]].append(place)
        waiting = list(places)
        heapq.heapify(waiting)
        # A ring: the end, at index -1, stands before the first symbol.
        following = [*range(1, len(symbols)), 0]
        preceding = list(range(-1, len(symbols) - 1))
        while waiting:
            made = heapq.heappop(waiting)
            for place in places.pop(made):
                second = following[place]
                # Not removed from the index when another merge broke the pair up, so look whether it still stands.
                if pair_symbols.get((symbols[place], symbols[second])) != made:
                    continue
                symbols[place], symbols[second] = made, _GONE
                before, after = preceding[place], following[second]
                following[place], preceding[after] = after, place
                for left in (before, place):
                    next_made = pair_symbols.get((symbols[left], symbols[following[left]]))
                    if next_made is not None:
                        if next_made not in places:
                            heapq.heappush(waiting, next_made)
                        places[next_made].append(left)
        return tuple([self._symbol_ids[symbol] for symbol in symbols if symbol != _GONE])


class _Cache(dict[str, tuple[int, ...]]):
    """The ids of pre-tokens, worked out when first asked for; emptied when full, and long pre-tokens are not kept."""

    _MAX_ENTRIES = 1 << 15
    _MAX_LENGTH = 64

    def __init__(self, merge: Callable[[str], tuple[int, ...]]) -> None:
        self._merge = merge

    def __missing__(self, pre_token: str) -> tuple[int, ...]:
        ids = self._merge(pre_token)
        if len(pre_token) <= self._MAX_LENGTH:
            if len(self) >= self._MAX_ENTRIES:
                self.clear()
            self[pre_token] = ids
        return ids


@contextmanager
def refusing_half_characters() -> Iterator[None]:
    try:
        yield
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise UserError(f"the text holds U+{half:04X}, half of a surrogate pair, which is no character") from error


def to_utf8(text: str) -> bytes:
    with refusing_half_characters():
        return text.encode()
