"""Encoding large texts and many: the ids of `lm.tokenizer.tokenizer`, by kernels and threads."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np

from lm.tokenizer.text.fast.build import load
from lm.tokenizer.text.fast.chunks import CHUNK, PADDING, SpecialTokens, code_point_classes, cut, in_order, pieces
from lm.tokenizer.text.fast.constants import (
    MAX_IDS,
    MAX_KEPT,
    MAX_KNOWN,
    NO_PAIR,
    NUM_ENCODE_FIELDS,
    NUM_IDS,
    NUM_KEPT,
    NUM_KNOWN,
    SYMBOL_BITS,
)

MAX_SYMBOLS = (1 << SYMBOL_BITS) - 1

_FIRST_BITS, _LAST_BITS = 16, 19  # of the table of known pre-tokens: 2 MB, doubled up to 16 MB
_KNOWN_IDS, _KNOWN_BYTES = 1 << 21, 1 << 22


class BulkEncoder:
    """The merges and special tokens of a tokenizer as kernels take them.

    Every thread that encodes keeps what it learns about pre-tokens for the next text, at most 28 MB.

    Args:
        pair_symbols: the symbols of each merge: the bytes are 0 to 255, the products follow in their order.
        symbol_ids: the id of each symbol; MAX_SYMBOLS at most.
        special_ids: the id of each special token.
        dtype: of the arrays of ids.
    """

    def __init__(
        self,
        pair_symbols: Collection[tuple[int, int]],
        symbol_ids: Sequence[int],
        special_ids: Mapping[str, int],
        dtype: np.dtype,
    ) -> None:
        kernels = load()
        num_merges = len(pair_symbols)
        self._symbol_ids = np.array(symbol_ids, np.uint32)
        self._byte_pairs = np.full(1 << 16, NO_PAIR, np.uint32)
        lefts_and_rights = np.fromiter(chain.from_iterable(pair_symbols), np.uint32, 2 * num_merges)
        self._bits = max(8, num_merges.bit_length())
        filled = False
        while not filled:
            self._bits += 1
            self._pairs = np.full(1 << self._bits, ~np.uint64(0))
            filled = kernels.fill_pairs(lefts_and_rights, num_merges, self._pairs, self._bits, self._byte_pairs)
        self._special = SpecialTokens.of(special_ids)
        self._special_tokens = list(special_ids)
        self._classes = code_point_classes()
        self._dtype = dtype
        self._memories: list[_Memory] = []

    def encode_text(self, text: str, allow_special: bool, num_threads: int) -> np.ndarray:
        """The ids of a text."""
        parts = (piece.encode() for piece in pieces(text, self._allowed(allow_special)))
        # About three bytes a token; memory that is not touched takes no room.
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
        """Yield the ids of joined blocks of UTF-8, array by array."""
        return self._encode_parts(cut(blocks, self._allowed(allow_special)), allow_special, num_threads)

    def encode_texts(self, texts: Iterable[str], allow_special: bool, num_threads: int) -> Iterator[np.ndarray]:
        """Yield the ids of each text."""
        batches = in_order(lambda batch: self._encode_batch(batch, allow_special), _batches(texts), num_threads)
        return chain.from_iterable(batches)

    def _encode_batch(self, texts: list[str], allow_special: bool) -> list[np.ndarray]:
        if len(texts) > 1 or len(texts[0]) <= CHUNK:
            return self._encode([text.encode() for text in texts], allow_special)
        parts = pieces(texts[0], self._allowed(allow_special))
        return [np.concatenate([self._encode([part.encode()], allow_special)[0] for part in parts])]

    def _encode_parts(self, parts: Iterable[bytes], allow_special: bool, num_threads: int) -> Iterator[np.ndarray]:
        return in_order(lambda part: self._encode([part], allow_special)[0], parts, num_threads)

    def _allowed(self, allow_special: bool) -> list[str]:
        return self._special_tokens if allow_special else []

    def _encode(self, texts: list[bytes], allow_special: bool) -> list[np.ndarray]:
        """The ids of some texts."""
        data = np.frombuffer(b"".join([*texts, PADDING]), np.uint8)
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        id_ends = np.empty(len(texts), np.int64)
        try:
            memory = self._memories.pop()
        except IndexError:
            memory = _Memory()
        memory.make_room(len(data))
        num_ids = load().encode(
            data, ends, len(texts),
            self._special.texts, self._special.bounds, self._special.ids, self._special.num_tokens * allow_special,
            self._classes, self._byte_pairs, self._pairs, self._bits, self._symbol_ids,
            memory.known, memory.known_bits, memory.known_ids, memory.known_bytes, memory.state,
            memory.starts, memory.keys, memory.work, memory.heap, memory.ids, id_ends,
        )  # fmt: skip
        ids = memory.ids[:num_ids].astype(self._dtype)
        self._memories.append(memory)
        bounds = [0, *id_ends.tolist()]
        return [ids[begin:end] for begin, end in zip(bounds, bounds[1:])]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts that make a chunk together; a long one is alone."""
    batch, length = [], 0
    for text in texts:
        if batch and length + len(text) > CHUNK:
            yield batch
            batch, length = [], 0
        batch.append(text)
        length += len(text)
    if batch:
        yield batch


class _Memory:
    """What one thread knows and writes to; see kernels/encoding.py."""

    def __init__(self) -> None:
        self.state = np.zeros(NUM_ENCODE_FIELDS, np.int64)
        # Memory that is not touched takes no room.
        self.known_ids = np.empty(_KNOWN_IDS, np.uint32)
        self.known_bytes = np.empty(_KNOWN_BYTES + len(PADDING), np.uint8)
        self.state[MAX_IDS], self.state[MAX_KEPT] = _KNOWN_IDS, _KNOWN_BYTES
        self._make_table(_FIRST_BITS)
        self._make_scratch(CHUNK + CHUNK // 4)

    def _make_table(self, bits: int) -> None:
        self.known_bits = bits
        self.known = np.zeros(4 << bits, np.uint64)
        self.state[MAX_KNOWN] = 1 << bits - 1  # half full: probing stays short

    def _make_scratch(self, size: int) -> None:
        self.starts, self.ids = np.empty(size + 4, np.uint32), np.empty(size + 4, np.uint32)
        self.keys = np.empty(256, np.uint64)
        self.work, self.heap = np.empty(3 * size + 128, np.uint32), np.empty(3 * size, np.uint64)

    def make_room(self, size: int) -> None:
        """For a chunk of `size` bytes, and for new pre-tokens: a full table grows, or is forgotten at its largest."""
        if len(self.ids) < size + 4:
            self._make_scratch(2 * size)
        state = self.state
        if self.known_bits < _LAST_BITS:
            if 2 * state[NUM_KNOWN] > state[MAX_KNOWN]:
                known, bits = self.known, self.known_bits
                self._make_table(bits + 1)
                load().rehash(known, bits, self.known, self.known_bits, self.known_bytes)
        elif (10 * state[[NUM_KNOWN, NUM_IDS, NUM_KEPT]] > 9 * state[[MAX_KNOWN, MAX_IDS, MAX_KEPT]]).any():
            self.known.fill(0)
            state[NUM_KNOWN] = state[NUM_IDS] = state[NUM_KEPT] = 0
