"""Encoding in plain Python, one pre-token at a time: for short texts such as prompts, and for every pattern."""

import heapq
from collections import defaultdict
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
    """

    def __init__(
        self, pair_symbols: Mapping[tuple[int, int], int], symbol_ids: Sequence[int], special_ids: Mapping[str, int]
    ) -> None:
        self._pair_symbols = pair_symbols
        self._symbol_ids = symbol_ids
        self._special_ids = special_ids
        self._cache = _Cache(self._encode_pre_token)

    def encode(self, chunks: Iterable[str], pre_tokenizer: PreTokenizer) -> Iterator[int]:
        """Yield the ids of the concatenated chunks."""
        for pre_tokens, follower in pre_tokenizer.stream(chunks):
            yield from chain.from_iterable(map(self._cache.__getitem__, pre_tokens))
            if follower:
                yield self._special_ids[follower]

    def _encode_pre_token(self, pre_token: str) -> tuple[int, ...]:
        """Apply the merges in order, each to all occurrences of its pair, from left to right.

        An index holds the positions of every pair that can be merged, so the time is roughly linear in the length,
        even for a pre-token of a million letters. The index is keyed by the symbol that a merge makes. A symbol takes
        part only in later merges, so the next merge is always the one with the smallest symbol in the index.
        """
        pair_symbols = self._pair_symbols
        symbols = [*to_utf8(pre_token), _NO_SYMBOL]
        positions = defaultdict(list)
        for position, pair in enumerate(pairwise(symbols)):
            if pair in pair_symbols:
                positions[pair_symbols[pair]].append(position)
        pending = list(positions)
        heapq.heapify(pending)
        # The links form a ring: the end, at index -1, comes before the first symbol.
        next_position = [*range(1, len(symbols)), 0]
        previous_position = list(range(-1, len(symbols) - 1))
        while pending:
            merged = heapq.heappop(pending)
            for position in positions.pop(merged):
                second = next_position[position]
                # Another merge may have broken up the pair after it was added to the index.
                if pair_symbols.get((symbols[position], symbols[second])) != merged:
                    continue
                symbols[position], symbols[second] = merged, _NO_SYMBOL
                before, after = previous_position[position], next_position[second]
                next_position[position], previous_position[after] = after, position
                for left in (before, position):
                    next_merged = pair_symbols.get((symbols[left], symbols[next_position[left]]))
                    if next_merged is not None:
                        if next_merged not in positions:
                            heapq.heappush(pending, next_merged)
                        positions[next_merged].append(left)
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
