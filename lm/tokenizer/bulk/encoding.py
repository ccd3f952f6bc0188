"""Encoding large texts and many: the ids of `lm.tokenizer.tokenizer`, by kernels and threads."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from lm.tokenizer.bulk.chunks import CHUNK_BYTES, PADDING, SpecialTokens, code_point_classes, cut, in_order
from lm.tokenizer.kernels.build import load
from lm.tokenizer.kernels.layout import (
    MAX_IDS,
    MAX_KEPT,
    MAX_KNOWN,
    NO_PAIR,
    NUM_ENCODE_FIELDS,
    NUM_IDS,
    NUM_KEPT,
    NUM_KNOWN,
)

MAX_SYMBOLS = 1 << 21

_FIRST_BITS, _LAST_BITS = 16, 19  # of the table of known pre-tokens: 2 MB, then 16 MB
_KNOWN_IDS, _KNOWN_BYTES = 1 << 21, 1 << 22


class BulkEncoder:
    """The merges and special tokens of a tokenizer as kernels take them.

    Every thread that encodes keeps what it learned about pre-tokens for its next text, at most 30 MB.

    Args:
        pair_symbols: the symbol that each pair of symbols makes, less than MAX_SYMBOLS of them.
        symbol_ids: the id of each symbol.
        special_ids: the id of each special token.
    """

    def __init__(
        self, pair_symbols: Mapping[tuple[int, int], int], symbol_ids: Sequence[int], special_ids: Mapping[str, int]
    ) -> None:
        triples = np.array([(*pair, product) for pair, product in pair_symbols.items()], np.uint32).reshape(-1)
        self._pair_bits = max(8, len(pair_symbols).bit_length() + 1)
        self._pairs = np.full(1 << self._pair_bits, ~np.uint64(0))
        self._byte_pairs = np.full(1 << 16, NO_PAIR, np.uint32)
        load().fill_pairs(triples, len(pair_symbols), self._pairs, self._pair_bits, self._byte_pairs)
        self._symbol_ids = np.array(symbol_ids, np.uint32)
        self._special = SpecialTokens.of({token.encode(): token_id for token, token_id in special_ids.items()})
        self._special_texts = [token.encode() for token in special_ids]
        self._memories: list[_Memory] = []

    def encode_blocks(self, blocks: Iterable[bytes], allow_special: bool, num_threads: int) -> Iterator[np.ndarray]:
        """Yield the ids of the joined blocks of UTF-8 bit by bit."""
        chunks = cut(blocks, self._special_texts if allow_special else [])
        for parts in in_order(lambda chunk: self._encode_parts([chunk], allow_special), chunks, num_threads):
            yield parts[0]

    def encode_texts(self, texts: Iterable[bytes], allow_special: bool, num_threads: int) -> Iterator[np.ndarray]:
        """Yield the ids of each text."""
        num_parts: deque[int] = deque()

        def batches() -> Iterator[list[bytes]]:
            batch: list[bytes] = []
            size = 0
            for text in texts:
                parts = [text]
                if len(text) > CHUNK_BYTES:
                    parts = list(cut(_blocks(text), self._special_texts if allow_special else []))
                num_parts.append(len(parts))
                for part in parts:
                    batch.append(part)
                    size += len(part)
                    if size >= CHUNK_BYTES:
                        yield batch
                        batch, size = [], 0
            if batch:
                yield batch

        waiting: list[np.ndarray] = []
        for parts in in_order(lambda batch: self._encode_parts(batch, allow_special), batches(), num_threads):
            for part in parts:
                waiting.append(part)
                if len(waiting) == num_parts[0]:
                    num_parts.popleft()
                    yield part if len(waiting) == 1 else np.concatenate(waiting)
                    waiting = []

    def _encode_parts(self, parts: list[bytes], allow_special: bool) -> list[np.ndarray]:
        try:
            memory = self._memories.pop()
        except IndexError:
            memory = _Memory()
        data = np.frombuffer(b"".join([*parts, PADDING]), np.uint8)
        ends = np.cumsum([len(part) for part in parts])
        id_ends = np.empty(len(parts), np.int64)
        memory.make_room(len(data))
        num_ids = load().encode(
            data, ends, len(parts),
            self._special.texts, self._special.bounds, self._special.ids, self._special.num_tokens * allow_special,
            code_point_classes(), self._byte_pairs, self._pairs, self._pair_bits, self._symbol_ids,
            memory.known, memory.known_bits, memory.known_ids, memory.known_bytes, memory.state,
            memory.starts, memory.work, memory.heap, memory.ids, id_ends,
        )  # fmt: skip
        ids = memory.ids[:num_ids].copy()
        self._memories.append(memory)
        if len(parts) == 1:
            return [ids]
        bounds = [0, *id_ends.tolist()]
        return [ids[begin:end] for begin, end in zip(bounds, bounds[1:])]


class _Memory:
    """What one thread knows and writes to; see kernels/encoding.py."""

    def __init__(self) -> None:
        self.state = np.zeros(NUM_ENCODE_FIELDS, np.int64)
        # Memory that is not touched takes no room.
        self.known_ids = np.empty(_KNOWN_IDS, np.uint32)
        self.known_bytes = np.empty(_KNOWN_BYTES + len(PADDING), np.uint8)
        self.state[MAX_IDS], self.state[MAX_KEPT] = _KNOWN_IDS, _KNOWN_BYTES
        self._make_table(_FIRST_BITS)
        self._make_scratch(2 * CHUNK_BYTES)

    def _make_table(self, bits: int) -> None:
        self.known_bits = bits
        self.known = np.zeros(4 << bits, np.uint64)
        self.state[MAX_KNOWN] = 1 << bits - 1  # half full: probing stays short

    def _make_scratch(self, size: int) -> None:
        self.starts, self.ids = np.empty(size + 4, np.uint32), np.empty(size + 4, np.uint32)
        self.work, self.heap = np.empty(3 * size + 128, np.uint32), np.empty(3 * size, np.uint64)

    def make_room(self, size: int) -> None:
        """For a chunk of `size` bytes, and for new pre-tokens: a full table grows, or is forgotten at its largest."""
        if len(self.ids) < size + 4:
            self._make_scratch(2 * size)
        state = self.state
        if self.known_bits < _LAST_BITS:
            if 2 * state[NUM_KNOWN] > state[MAX_KNOWN]:
                known, bits = self.known, self.known_bits
                self._make_table(_LAST_BITS)
                load().rehash(known, bits, self.known, self.known_bits, self.known_bytes)
        elif (
            max(state[NUM_KNOWN] / state[MAX_KNOWN], state[NUM_IDS] / _KNOWN_IDS, state[NUM_KEPT] / _KNOWN_BYTES) > 0.9
        ):
            self.known.fill(0)
            state[NUM_KNOWN] = state[NUM_IDS] = state[NUM_KEPT] = 0


def _blocks(data: bytes) -> Iterator[bytes]:
    for begin in range(0, len(data), CHUNK_BYTES):
        yield data[begin : begin + CHUNK_BYTES]
