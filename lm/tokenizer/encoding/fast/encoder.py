"""Encoding long texts, and many texts, with kernels and threads."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise

import numpy as np

from lm.tokenizer.encoding.fast import library
from lm.tokenizer.encoding.fast.cache import SharedCache
from lm.tokenizer.encoding.fast.constants import BLOCK_SIZE, LANE_SIZE, NO_MERGE, NUM_LANES, SYMBOL_BITS
from lm.tokenizer.text.fast.build import Pinned
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
_SPACE_AFTER_IDS = 16  # kernels write ids in groups of this size
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
        byte_pairs = np.full(1 << 16, NO_MERGE, np.uint32)
        pair_bits = max(8, num_pairs.bit_length())
        is_filled = False
        while not is_filled:
            pair_bits += 1
            pair_table = zeros(1 << pair_bits, np.uint64)
            pair_table.fill(~np.uint64(0))
            is_filled = kernels.fill_pairs(
                np.frombuffer(pairs, np.uint32), num_pairs, pair_table, pair_bits, byte_pairs
            )
        whole_texts = np.frombuffer(b"".join([*whole_ids, PADDING]), np.uint8)
        whole_bits = len(whole_ids).bit_length() + 1
        whole_tokens = zeros(4 << whole_bits, np.uint64)
        kernels.fill_whole_tokens(
            whole_texts, np.cumsum([0, *map(len, whole_ids)], dtype=np.int64),
            np.fromiter(whole_ids.values(), np.uint32, len(whole_ids)), len(whole_ids), whole_tokens, whole_bits,
        )  # fmt: skip
        self.automaton = automaton
        self._special = SpecialTokens.from_ids(special_ids)
        self._dtype = dtype
        self._cache = SharedCache()
        self._idle_workspaces: list[_Workspace] = []
        # Arguments of the kernel that encodes.
        symbols = np.frombuffer(symbol_ids, np.uint32)
        merges = Pinned(byte_pairs), Pinned(pair_table), pair_bits, Pinned(symbols)
        self._tables = Pinned(automaton), *merges, Pinned(whole_tokens), whole_bits, Pinned(whole_texts)
        self._special_arguments = {
            allowed: (Pinned(special.texts), Pinned(special.bounds), Pinned(special.ids), special.num_tokens)
            for allowed, special in ((False, _NO_SPECIAL), (True, self._special))
        }

    def special(self, allow_special: bool) -> SpecialTokens:
        """Return the special tokens, or none if they are to be encoded like any other text."""
        return self._special if allow_special else _NO_SPECIAL

    def encode_text(self, text: str, allow_special: bool, num_threads: int) -> np.ndarray:
        """Return the ids of a text."""
        source = StringSource(text)
        # In most scripts, a token has one character or more; otherwise the array grows. The operating system provides
        # memory only for the part that is written to.
        ids = zeros(len(text) + _SPACE_AFTER_IDS, self._dtype)
        count = 0
        if num_threads == 1:
            for piece in self._pieces(source, allow_special, num_threads):
                with self._workspace(source.max_bytes(*piece)) as workspace:
                    size = source.read(*piece, workspace.data)
                    ids = self._grow(ids, count, size + _SPACE_AFTER_IDS)
                    count += self._encode(workspace, np.array([size]), allow_special, ids[count:])[-1]
        else:
            for part in self.encode_source(source, allow_special, num_threads):
                ids = self._grow(ids, count, len(part))
                ids[count : count + len(part)] = part
                count += len(part)
        return ids[:count]

    def _grow(self, ids: np.ndarray, count: int, space: int) -> np.ndarray:
        """Return `ids`, or a copy of the first `count`, with space for so many more."""
        if count + space <= len(ids):
            return ids
        larger = zeros(2 * len(ids) + space, self._dtype)
        larger[:count] = ids[:count]
        return larger

    def encode_source(self, source: Source, allow_special: bool, num_threads: int) -> Iterator[np.ndarray]:
        """Yield the ids of a text, array by array."""

        def encode(piece: tuple[int, int]) -> np.ndarray:
            with self._workspace(source.max_bytes(*piece)) as workspace:
                size = source.read(*piece, workspace.data)
                (num_ids,) = self._encode(workspace, np.array([size]), allow_special, workspace.ids)
                return workspace.ids[:num_ids].copy()

        return parallel_map(encode, self._pieces(source, allow_special, num_threads), num_threads)

    def _pieces(self, source: Source, allow_special: bool, num_threads: int) -> Iterator[tuple[int, int]]:
        length = piece_length(source.length, num_threads)
        return split_source(source, length, self.automaton, self.special(allow_special))

    def encode_blocks(self, blocks: Iterable[bytes], allow_special: bool) -> Iterator[np.ndarray]:
        """Yield the ids of the concatenation of blocks of UTF-8, array by array, computed by the current thread."""
        for block in split_blocks(blocks, self.automaton, self.special(allow_special)):
            with self._workspace(len(block)) as workspace:
                workspace.data[: len(block)] = np.frombuffer(block, np.uint8)
                (num_ids,) = self._encode(workspace, np.array([len(block)]), allow_special, workspace.ids)
                yield workspace.ids[:num_ids].copy()

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
                id_ends = self._encode(workspace, text_ends, allow_special, workspace.ids)
                ids = workspace.ids[: id_ends[-1]].copy()
                return [ids[begin:end] for begin, end in pairwise([0, *id_ends.tolist()])]

        return chain.from_iterable(parallel_map(encode, _batches(ends, size), num_threads))

    @contextmanager
    def _workspace(self, num_bytes: int) -> Iterator["_Workspace"]:
        """Lend the scratch arrays for a text of this many bytes to the current thread."""
        size = num_bytes + num_bytes // 4  # the next piece may be a little longer
        try:
            workspace = self._idle_workspaces.pop()
        except IndexError:
            workspace = _Workspace(size, self._dtype)
        if workspace.num_bytes < num_bytes:
            workspace = _Workspace(size, self._dtype)
        yield workspace
        if workspace.num_bytes <= _MAX_IDLE_BYTES:
            self._idle_workspaces.append(workspace)

    def _encode(self, workspace: "_Workspace", ends: np.ndarray, allow_special: bool, ids: np.ndarray) -> np.ndarray:
        """Write the ids of the texts in `workspace.data` to `ids`; return where those of each text end.

        Args:
            ends: Where each text ends in the data.
            ids: An array with space for one id per byte of data, and _SPACE_AFTER_IDS more.
        """
        cache = self._cache.get()
        id_ends = np.empty(len(ends), np.int64)
        library.load().encode(
            ends, len(ends), *self._special_arguments[allow_special], *self._tables, *cache.arguments,
            *workspace.arguments, ids.ctypes.data, ids.itemsize, id_ends,
        )  # fmt: skip
        return id_ends


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

    def __init__(self, num_bytes: int, dtype: np.dtype) -> None:
        # The operating system provides memory only for the parts of an empty array that are written to.
        self.num_bytes = num_bytes
        self.data = np.empty(num_bytes + len(PADDING), np.uint8)
        self.ids = np.empty(num_bytes + _SPACE_AFTER_IDS, dtype)
        size = BLOCK_SIZE + 128
        starts, keys = np.empty(size, np.uint32), np.empty(2 * size, np.uint64)
        places, new_ids, new_ends = np.empty(size, np.int64), np.empty(size, np.uint32), np.empty(size, np.int64)
        block_ids = np.empty(num_bytes + 2 * BLOCK_SIZE, np.uint32)
        size = 3 * num_bytes + NUM_LANES * LANE_SIZE
        work, heap = np.empty(size, np.uint32), np.empty(size, np.uint64)
        self.arguments = [
            Pinned(array) for array in (self.data, starts, keys, places, work, heap, new_ids, new_ends, block_ids)
        ]
