"""Write the documents of a split to text files, such as data/raw/train.txt, and describe them for the manifest.

Every document is followed by END_OF_TEXT and nothing else. The number of documents is therefore the number of markers,
and the number of bytes of text is the size of the files minus 13 bytes per document.
"""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm
from typing_extensions import TypedDict

from lm import shards
from lm.atomic import translate_write_errors
from lm.corpus.blocks import MARKER, Block


class ShardFacts(TypedDict):
    """What the manifest records about a text file: bytes of text without markers, documents, and the checksum."""

    bytes: int
    documents: int
    sha256: str


class SplitWriter:
    """Writes documents until a limit is reached, and continues what an earlier writer has written.

    Args:
        folder: An existing folder.
        split: `train` or `val`.
        max_bytes: Bytes of UTF-8 text, without markers. The document that reaches the limit is the last one. 0 means
            no limit.
        max_documents: The number of documents. 0 means no limit.
        written: The `shards` of the earlier writer. What it has written after them is dropped.
    """

    def __init__(
        self, folder: Path, split: str, max_bytes: int, max_documents: int, written: list[ShardFacts] | None = None
    ) -> None:
        self._folder, self._split = folder, split
        self._max_bytes, self._max_documents = max_bytes, max_documents
        self._shards = list(written or [])
        self.bytes = sum(facts["bytes"] for facts in self._shards)
        self.documents = sum(facts["documents"] for facts in self._shards)
        self._bar = tqdm(
            desc=split, total=max_bytes or None, unit="B", unit_scale=True, delay=1, disable=None, leave=False
        )
        self._file: BinaryIO
        if written:
            self._reopen_shard()
        else:
            self._open_shard()

    @property
    def shards(self) -> list[ShardFacts]:
        """The facts about the files so far, the last of which may be unfinished."""
        self._shards[-1]["sha256"] = self._sha256.hexdigest()
        return self._shards

    @property
    def paths(self) -> list[Path]:
        """The files so far."""
        return [self._folder / f"{self._split}-{index:05d}.txt" for index in range(len(self._shards))]

    @property
    def is_full(self) -> bool:
        """Whether a limit has been reached."""
        return 0 < self._max_bytes <= self.bytes or 0 < self._max_documents <= self.documents

    def add(self, block: Block) -> int:
        """Write the documents up to the limit, and return their number.

        Raises:
            UserError: The file cannot be written.
        """
        sizes = np.diff(block.ends, prepend=0) - len(MARKER)
        count = len(block)
        if self._max_documents:
            count = min(count, self._max_documents - self.documents)
        if self._max_bytes:
            # The document that reaches the limit is the last one.
            count = min(count, 1 + int(np.searchsorted(np.cumsum(sizes), self._max_bytes - self.bytes)))
        count = 0 if self.is_full else count
        begin = 0
        while begin < count:
            if self._shards[-1]["bytes"] >= shards.SHARD_BYTES:
                self._open_shard()
            space = shards.SHARD_BYTES - self._shards[-1]["bytes"]
            end = min(count, begin + 1 + int(np.searchsorted(np.cumsum(sizes[begin:count]), space)))
            self._write(block, begin, end, int(sizes[begin:end].sum()))
            begin = end
        return count

    def sync(self) -> list[ShardFacts]:
        """Return `shards` when all documents so far are on disk."""
        with translate_write_errors(self.paths[-1]):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self.shards

    def close(self) -> None:
        """Close the file."""
        self._bar.close()
        with translate_write_errors(self.paths[-1]):
            self._file.close()

    def _open_shard(self) -> None:
        if self._shards:
            self.sync()
            self._file.close()
        self._shards.append({"bytes": 0, "documents": 0, "sha256": ""})
        self._sha256 = hashlib.sha256()
        with translate_write_errors(self.paths[-1]):
            self._file = self.paths[-1].open("wb")

    def _reopen_shard(self) -> None:
        """Continue the last shard after the documents that are known."""
        last, path = self._shards[-1], self.paths[-1]
        self._sha256 = hashlib.sha256()
        with translate_write_errors(path):
            self._file = path.open("r+b")
            self._file.truncate(last["bytes"] + len(MARKER) * last["documents"])
            while data := self._file.read(1 << 20):
                self._sha256.update(data)

    def _write(self, block: Block, begin: int, end: int, size: int) -> None:
        first = int(block.ends[begin - 1]) if begin else 0
        text = block.text[first : int(block.ends[end - 1])]
        with translate_write_errors(self.paths[-1]):
            self._file.write(text.data)
        self._sha256.update(text.data)
        self._shards[-1]["bytes"] += size
        self._shards[-1]["documents"] += end - begin
        self.bytes += size
        self.documents += end - begin
        self._bar.update(size)
