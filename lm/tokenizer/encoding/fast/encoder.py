"""Encoding long texts, and many texts, with kernels and threads."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise

import numpy as np

from lm.tokenizer.encoding.fast import library
from lm.tokenizer.encoding.fast.constants import MAX_IDS, NO_MERGE, NUM_CACHE_FIELDS, NUM_IDS, SYMBOL_BITS
from lm.tokenizer.text.fast.chunks import (
    CHUNK_SIZE,
    PADDING,
    SpecialTokens,
    parallel_map,
    split_blocks,
)
from lm.tokenizer.text.fast.constants import MAX_KEY_BYTES, MAX_KEYS, NUM_KEY_BYTES, NUM_KEYS

MAX_SYMBOLS = (1 << SYMBOL_BITS) - 1

_FIRST_CACHE_BITS, _LAST_CACHE_BITS = 16, 19  # the cache starts with 2 MB and grows to 16 MB
_NO_SPECIAL = SpecialTokens.from_ids({})
_MAX_CACHED_IDS, _MAX_CACHED_BYTES = 1 << 21, 1 << 22


class FastEncoder:
    """Encodes with a pattern that has an automaton; the ids are the same as those of `Encoder`.

    Each thread keeps its cache of pre-tokens, at most 28 MB, for the texts that follow.

    Args:
        pair_symbols: The symbol that each mergeable pair of symbols makes. Symbols 0 to 255 are the bytes; the results
            of the merges follow in order.
        symbol_ids: The id of each symbol; at most MAX_SYMBOLS of them.
        special_ids: The id of each special token.
        automaton: The tables of the pattern, from `automaton_tables`.
        dtype: The dtype of the arrays of ids.
    """

    def __init__(
        self,
        pair_symbols: Mapping[tuple[int, int], int],
        symbol_ids: Sequence[int],
        special_ids: Mapping[str, int],
        automaton: np.ndarray,
        dtype: np.dtype,
    ) -> None:
        kernels = library.load()
        num_pairs = len(pair_symbols)
        self._symbol_ids = np.array(symbol_ids, np.uint32)
        self._byte_pairs = np.full(1 << 16, NO_MERGE, np.uint32)
        lefts_and_rights = np.fromiter(chain.from_iterable(pair_symbols), np.uint32, 2 * num_pairs).reshape(-1, 2)
        pairs = np.column_stack([lefts_and_rights, np.fromiter(pair_symbols.values(), np.uint32, num_pairs)])
        self._pair_bits = max(8, num_pairs.bit_length())
        is_filled = False
        while not is_filled:
            self._pair_bits += 1
            self._pairs = np.full(1 << self._pair_bits, ~np.uint64(0))
            is_filled = kernels.fill_pairs(pairs, num_pairs, self._pairs, self._pair_bits, self._byte_pairs)
        self._special = SpecialTokens.from_ids(special_ids)
        self.automaton = automaton
        self._dtype = dtype
        self._idle_workspaces: list[_Workspace] = []

    def special(self, allow_special: bool) -> SpecialTokens:
        """Return the special tokens, or none if they are to be encoded like any other text."""
        return self._special if allow_special else _NO_SPECIAL

    def encode_text(self, text: str, allow_special: bool, num_threads: int) -> np.ndarray:
        """Return the ids of a text."""
        parts = self._split_text(text, allow_special)
        # Tokens are about three bytes long. If they are shorter, the array grows.
        ids = np.empty(len(text) // 3, self._dtype)
        count = 0
        for part in self._encode_parts(parts, allow_special, num_threads):
            if count + len(part) > len(ids):
                ids.resize(2 * (count + len(part)), refcheck=False)
            ids[count : count + len(part)] = part
            count += len(part)
        ids.resize(count, refcheck=False)
        return ids

    def encode_blocks(self, blocks: Iterable[bytes], allow_special: bool, num_threads: int) -> Iterator[np.ndarray]:
        """Yield the ids of the concatenation of blocks of UTF-8, array by array."""
        return self._encode_parts(
            split_blocks(blocks, self.automaton, self.special(allow_special)), allow_special, num_threads
        )

    def encode_texts(self, texts: Iterable[str], allow_special: bool, num_threads: int) -> Iterator[np.ndarray]:
        """Yield the ids of each text."""
        batches = parallel_map(lambda batch: self._encode_batch(batch, allow_special), _batches(texts), num_threads)
        return chain.from_iterable(batches)

    def _encode_batch(self, texts: list[str], allow_special: bool) -> list[np.ndarray]:
        if len(texts) > 1 or len(texts[0]) <= CHUNK_SIZE:
            return self._encode([text.encode() for text in texts], allow_special)
        return [np.concatenate(list(self._encode_parts(self._split_text(texts[0], allow_special), allow_special, 1)))]

    def _encode_parts(self, parts: Iterable[bytes], allow_special: bool, num_threads: int) -> Iterator[np.ndarray]:
        return parallel_map(lambda part: self._encode([part], allow_special)[0], parts, num_threads)

    def _split_text(self, text: str, allow_special: bool) -> Iterable[bytes]:
        if len(text) <= CHUNK_SIZE:
            return [text.encode()]
        blocks = (text[begin : begin + CHUNK_SIZE].encode() for begin in range(0, len(text), CHUNK_SIZE))
        return split_blocks(blocks, self.automaton, self.special(allow_special))

    def _encode(self, texts: list[bytes], allow_special: bool) -> list[np.ndarray]:
        """Return the ids of each text, computed by the current thread."""
        special = self.special(allow_special)
        data = np.frombuffer(b"".join([*texts, PADDING]), np.uint8)
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        id_ends = np.empty(len(texts), np.int64)
        try:
            workspace = self._idle_workspaces.pop()
        except IndexError:
            workspace = _Workspace()
        workspace.reserve(len(data))
        num_ids = library.load().encode(
            data, ends, len(texts),
            special.texts, special.bounds, special.ids, special.num_tokens,
            self.automaton, self._byte_pairs, self._pairs, self._pair_bits, self._symbol_ids,
            workspace.cache, workspace.cache_bits, workspace.cached_ids, workspace.key_bytes, workspace.state,
            workspace.starts, workspace.keys, workspace.work, workspace.heap, workspace.ids, id_ends,
        )  # fmt: skip
        ids = workspace.ids[:num_ids].astype(self._dtype)
        self._idle_workspaces.append(workspace)
        bounds = [0, *id_ends.tolist()]
        return [ids[begin:end] for begin, end in pairwise(bounds)]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Group texts into batches of at most CHUNK_SIZE characters; a longer text gets its own batch."""
    batch: list[str] = []
    length = 0
    for text in texts:
        if batch and length + len(text) > CHUNK_SIZE:
            yield batch
            batch, length = [], 0
        batch.append(text)
        length += len(text)
    if batch:
        yield batch


class _Workspace:
    """The cache and the scratch arrays that one thread uses at a time; encoder_kernels.py describes them."""

    def __init__(self) -> None:
        self.state = np.zeros(NUM_CACHE_FIELDS, np.int64)
        # The operating system provides memory only for the parts of an empty array that are written to.
        self.cached_ids = np.empty(_MAX_CACHED_IDS, np.uint32)
        self.key_bytes = np.empty(_MAX_CACHED_BYTES + len(PADDING), np.uint8)
        self.state[MAX_IDS], self.state[MAX_KEY_BYTES] = _MAX_CACHED_IDS, _MAX_CACHED_BYTES
        self._allocate_cache(_FIRST_CACHE_BITS)
        self._allocate_scratch(CHUNK_SIZE + CHUNK_SIZE // 4)

    def _allocate_cache(self, bits: int) -> None:
        self.cache_bits = bits
        self.cache = np.zeros(4 << bits, np.uint64)
        self.state[MAX_KEYS] = 1 << bits - 1  # at most half full, so that probing stays short

    def _allocate_scratch(self, size: int) -> None:
        self.starts, self.ids = np.empty(size + 4, np.uint32), np.empty(size + 4, np.uint32)
        self.keys = np.empty(256, np.uint64)
        self.work, self.heap = np.empty(3 * size + 128, np.uint32), np.empty(3 * size, np.uint64)

    def reserve(self, size: int) -> None:
        """Make space for a chunk of `size` bytes, and for new pre-tokens.

        When the cache is half full it is doubled; at its largest size it is cleared instead.
        """
        if len(self.ids) < size + 4:
            self._allocate_scratch(2 * size)
        state = self.state
        if self.cache_bits < _LAST_CACHE_BITS:
            if 2 * state[NUM_KEYS] > state[MAX_KEYS]:
                cache, bits = self.cache, self.cache_bits
                self._allocate_cache(bits + 1)
                library.load().grow_cache(cache, bits, self.cache, self.cache_bits, self.key_bytes)
        elif (10 * state[[NUM_KEYS, NUM_IDS, NUM_KEY_BYTES]] > 9 * state[[MAX_KEYS, MAX_IDS, MAX_KEY_BYTES]]).any():
            self.cache.fill(0)
            state[NUM_KEYS] = state[NUM_IDS] = state[NUM_KEY_BYTES] = 0
