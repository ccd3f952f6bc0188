"""Blocks of documents, in which the text of a corpus travels from the readers to the writer.

A reader may work in another process or on another machine, where a block of thousands of documents costs as much to
send as a single one.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lm.corpus.config import END_OF_TEXT

BLOCK_BYTES = 1 << 24
MARKER = END_OF_TEXT.encode()


@dataclass(frozen=True)
class Block:
    """Consecutive documents of one split, n of them.

    Attributes:
        text: The documents as UTF-8, each followed by END_OF_TEXT (uint8).
        ends: The position in `text` after the marker of each document (n, int64).
        hashes: 64 bits for each document, equal for documents that differ only in the white space around them
            (n, uint64). Between a million documents and a billion others, the probability of a collision is 0.005%.
        split: The split that the documents belong to, or None if the writer decides.
    """

    text: np.ndarray
    ends: np.ndarray
    hashes: np.ndarray
    split: str | None

    def __len__(self) -> int:
        return len(self.ends)

    def document(self, index: int) -> str:
        """The text of a document."""
        begin = int(self.ends[index - 1]) if index else 0
        return self.text[begin : int(self.ends[index]) - len(MARKER)].tobytes().decode()

    def before(self, count: int) -> "Block":
        """The first `count` documents of this block."""
        end = int(self.ends[count - 1]) if count else 0
        return Block(self.text[:end], self.ends[:count], self.hashes[:count], self.split)

    def after(self, count: int) -> "Block":
        """The documents of this block without the first `count` ones."""
        begin = int(self.ends[count - 1]) if count else 0
        return Block(self.text[begin:], self.ends[count:] - begin, self.hashes[count:], self.split)


def to_blocks(documents: Iterable[str], split_of: Callable[[str], str | None]) -> Iterator[Block]:
    """Collect documents in blocks of about BLOCK_BYTES. Within a split, they keep their order.

    Args:
        documents: The documents.
        split_of: Returns the split of a document.
    """
    unfinished: dict[str | None, _UnfinishedBlock] = {}
    for document in documents:
        split = split_of(document)
        block = unfinished.setdefault(split, _UnfinishedBlock(split))
        block.add(document)
        if len(block.text) >= BLOCK_BYTES:
            yield unfinished.pop(split).finish()
    for block in unfinished.values():
        yield block.finish()


class _UnfinishedBlock:
    def __init__(self, split: str | None) -> None:
        self._split = split
        self.text = bytearray()
        self._ends: list[int] = []
        self._hashes: list[bytes] = []

    def add(self, document: str) -> None:
        self.text += document.encode()
        self.text += MARKER
        self._ends.append(len(self.text))
        self._hashes.append(hashlib.sha256(document.strip().encode()).digest()[:8])

    def finish(self) -> Block:
        hashes = np.frombuffer(b"".join(self._hashes), ">u8").astype(np.uint64)
        return Block(np.frombuffer(self.text, np.uint8), np.array(self._ends, np.int64), hashes, self._split)
