"""Encoding long texts, and many texts, with kernels and threads."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise

import numpy as np

from lm.tokenizer.encoding.fast import library
from lm.tokenizer.encoding.fast.cache import SharedCache
from lm.tokenizer.encoding.fast.constants import NO_MERGE, SYMBOL_BITS
from lm.tokenizer.text.fast.chunks import (
    PADDING,
    Source,
    SpecialTokens,
    piece_length,
    split_blocks,
    split_source,
)
from lm.tokenizer.text.fast.memory import zeros
from lm.tokenizer.text.fast.parallel import parallel_map
from lm.tokenizer.text.fast.strings import MAX_CHARACTER_BYTES, StringSource, read_strings

MAX_SYMBOLS = (1 << SYMBOL_BITS) - 1

_NO_SPECIAL = SpecialTokens.from_ids({})
_MAX_IDLE_BYTES = 1 << 23  # of text; scratch arrays for more are not kept


class FastEncoder:
    """Encodes with a pattern that has an automaton; the ids are the same as those of `Encoder`.

    All threads share a cache of pre-tokens, at most 28 MB, which is kept for the texts that follow.

    Args:
        pairs: The two symbols of each pair that can be merged, and the symbol that it makes, one pair after the other.
            Symbols 0 to 255 are the bytes; the results of the merges follow in order.
        symbol_ids: The id of each symbol; at most MAX_SYMBOLS of them.
        special_ids: The id of each special token.
        whole_ids: The id of each token that a pre-token with its bytes becomes without any merges.
        automaton: The tables of the pattern, from `automaton_tables`.
        dtype: The dtype of the arrays of ids.
    """

    def __init__(
        self,
        pairs: array,
        symbol_ids: array,
        special_ids: Mapping[str, int],
        whole_ids: Mapping[bytes, int],
        automaton: np.ndarray,
        dtype: np.dtype,
    ) -> None:
        kernels = library.load()
        num_pairs = len(pairs) // 3
        self._symbol_ids = np.array(symbol_ids)
        self._byte_pairs = np.full(1 << 16, NO_MERGE, np.uint32)
        self._pair_bits = max(8, num_pairs.bit_length())
        is_filled = False
        while not is_filled:
            self._pair_bits += 1
            self._pairs = np.full(1 << self._pair_bits, ~np.uint64(0))
            is_filled = kernels.fill_pairs(np.array(pairs), num_pairs, self._pairs, self._pair_bits, self._byte_pairs)
        self._whole_texts = np.frombuffer(b"".join([*whole_ids, PADDING]), np.uint8)
        self._whole_bits = len(whole_ids).bit_length() + 1
        self._whole_tokens = zeros(4 << self._whole_bits, np.uint64)
        kernels.fill_whole_tokens(
            self._whole_texts, np.cumsum([0, *map(len, whole_ids)], dtype=np.int64),
            np.fromiter(whole_ids.values(), np.uint32, len(whole_ids)), len(whole_ids),
            self._whole_tokens, self._whole_bits,
        )  # fmt: skip
        self._special = SpecialTokens.from_ids(special_ids)
        self.automaton = automaton
        self._dtype = dtype
        self._cache = SharedCache()
        self._idle_workspaces: list[_Workspace] = []

    def special(self, allow_special: bool) -> SpecialTokens:
        """Return the special tokens, or none if they are to be encoded like any other text."""
        return self._special if allow_special else _NO_SPECIAL

    def encode_text(self, text: str, allow_special: bool, num_threads: int) -> np.ndarray:
        """Return the ids of a text."""
        # Tokens are about three bytes long. If they are shorter, the array grows.
        ids = zeros(len(text) // 3, self._dtype)
        count = 0
        for part in self.encode_source(StringSource(text), allow_special, num_threads):
            end = count + len(part)
            if end > len(ids):
                ids = np.concatenate([ids[:count], zeros(2 * end - count, self._dtype)])
            ids[count:end] = part
            count = end
        return ids[:count]

    def encode_source(self, source: Source, allow_special: bool, num_threads: int) -> Iterator[np.ndarray]:
        """Yield the ids of a text, array by array."""

        def encode(piece: tuple[int, int]) -> np.ndarray:
            with self._workspace(source.max_bytes(*piece)) as workspace:
                size = source.read(*piece, workspace.data)
                return self._encode(workspace, np.array([size]), allow_special)[0]

        pieces = split_source(
            source, piece_length(source.length, num_threads), self.automaton, self.special(allow_special)
        )
        return parallel_map(encode, pieces, num_threads)

    def encode_blocks(self, blocks: Iterable[bytes], allow_special: bool) -> Iterator[np.ndarray]:
        """Yield the ids of the concatenation of blocks of UTF-8, array by array, computed by the current thread."""
        for block in split_blocks(blocks, self.automaton, self.special(allow_special)):
            with self._workspace(len(block)) as workspace:
                workspace.data[: len(block)] = np.frombuffer(block, np.uint8)
                yield self._encode(workspace, np.array([len(block)]), allow_special)[0]

    def encode_texts(self, texts: Sequence[str], allow_special: bool, num_threads: int) -> Iterator[np.ndarray]:
        """Yield the ids of each text."""
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        ends = np.cumsum(lengths)
        size = piece_length(int(ends[-1]) if len(texts) else 0, num_threads)

        def encode(batch: tuple[int, int]) -> list[np.ndarray]:
            begin, end = batch
            if end - begin == 1 and lengths[begin] > size:
                return [self.encode_text(texts[begin], allow_special, num_threads=1)]
            num_bytes = MAX_CHARACTER_BYTES * int(lengths[begin:end].sum())
            with self._workspace(num_bytes) as workspace:
                text_ends = np.empty(end - begin, np.int64)
                read_strings(texts[begin:end], np.zeros_like(text_ends), lengths[begin:end], workspace.data, text_ends)
                return self._encode(workspace, text_ends, allow_special)

        return chain.from_iterable(parallel_map(encode, _batches(ends, size), num_threads))

    @contextmanager
    def _workspace(self, num_bytes: int) -> Iterator["_Workspace"]:
        """Lend the scratch arrays for a text of this many bytes to the current thread."""
        size = num_bytes + num_bytes // 4  # the next piece may be a little longer
        try:
            workspace = self._idle_workspaces.pop()
        except IndexError:
            workspace = _Workspace(size)
        if workspace.num_bytes < num_bytes:
            workspace = _Workspace(size)
        yield workspace
        if workspace.num_bytes <= _MAX_IDLE_BYTES:
            self._idle_workspaces.append(workspace)

    def _encode(self, workspace: "_Workspace", ends: np.ndarray, allow_special: bool) -> list[np.ndarray]:
        """Return the ids of each of the texts in `workspace.data`; `ends` says where they end."""
        special = self.special(allow_special)
        cache = self._cache.get()
        id_ends = np.empty(len(ends), np.int64)
        num_ids = library.load().encode(
            workspace.data, ends, len(ends),
            special.texts, special.bounds, special.ids, special.num_tokens,
            self.automaton, self._byte_pairs, self._pairs, self._pair_bits, self._symbol_ids,
            self._whole_tokens, self._whole_bits, self._whole_texts,
            cache.slots, cache.bits, cache.ids, cache.key_bytes, cache.state,
            workspace.starts, workspace.keys, workspace.work, workspace.heap, workspace.ids, id_ends,
        )  # fmt: skip
        ids = workspace.ids[:num_ids].astype(self._dtype)
        bounds = [0, *id_ends.tolist()]
        return [ids[begin:end] for begin, end in pairwise(bounds)]


def _batches(ends: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Group texts, given the sums of their lengths, into batches of at most `size`; a longer text gets its own batch.

    >>> list(_batches(np.cumsum([3, 4, 20, 5]), 10))
    [(0, 2), (2, 3), (3, 4)]
    """
    begin = length = 0
    while begin < len(ends):
        end = max(begin + 1, int(np.searchsorted(ends, length + size, side="right")))
        yield begin, end
        begin, length = end, int(ends[end - 1])


class _Workspace:
    """The text, the ids and the scratch arrays of one thread at a time; encoder_kernels.py describes them."""

    def __init__(self, num_bytes: int) -> None:
        # The operating system provides memory only for the parts of an empty array that are written to.
        self.num_bytes = num_bytes
        self.data = np.empty(num_bytes + len(PADDING), np.uint8)
        self.starts, self.ids = np.empty(num_bytes + 4, np.uint32), np.empty(num_bytes + 4, np.uint32)
        self.keys = np.empty(256, np.uint64)
        self.work, self.heap = np.empty(3 * num_bytes + 128, np.uint32), np.empty(3 * num_bytes, np.uint64)
