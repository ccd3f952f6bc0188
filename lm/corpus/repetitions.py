"""Find text that would be in the corpus twice."""

import sys
from collections import Counter

import numpy as np

from lm.corpus.blocks import Block
from lm.errors import UserError, quote

MAX_REMEMBERED = 1_000_000


class RepetitionCounter:
    """Counts the documents of the files in the list data.`key` that repeat an earlier one.

    Documents that differ only in the white space around them are equal. Only the first MAX_REMEMBERED different
    documents are compared with later ones, which bounds the memory to about 80 MB.
    """

    def __init__(self, key: str, counted: tuple[int, int] = (0, 0), remembered: np.ndarray | None = None) -> None:
        self.key = key
        self.documents, self.repeated = counted
        self._remembered: set[int] = set() if remembered is None else set(remembered.tolist())

    def count(self, hashes: np.ndarray) -> None:
        """Count documents, given by their hashes (uint64)."""
        for value in hashes.tolist():
            self.documents += 1
            if value in self._remembered:
                self.repeated += 1
            elif len(self._remembered) < MAX_REMEMBERED:
                self._remembered.add(value)

    def report(self) -> None:
        """Print a line to stderr if documents repeat. Text corpora often do, so this is no error."""
        if self.repeated:
            at_least = "at least " * (len(self._remembered) == MAX_REMEMBERED)
            print(
                f"data.{self.key}: {at_least}{self.repeated:,} of {self.documents:,} documents repeat earlier ones; "
                "they are kept",
                file=sys.stderr,
            )

    def to_array(self) -> np.ndarray:
        """The hashes that are remembered (uint64)."""
        return np.fromiter(self._remembered, np.uint64, len(self._remembered))


class ValDocuments:
    """The documents of `val_files`, which the documents of `train_files` must not repeat.

    Memory holds 8 bytes and a counter per document of `val`, whatever the length of `train`.
    """

    def __init__(self, hashes: np.ndarray | None = None) -> None:
        self._counts: Counter[int] = Counter() if hashes is None else Counter(hashes.tolist())
        self._repeated: set[int] = set()
        self._example: str | None = None

    def remember(self, hashes: np.ndarray) -> None:
        """Add documents of `val`, given by their hashes (uint64)."""
        self._counts.update(hashes.tolist())

    @property
    def found(self) -> bool:
        """Whether `compare` has found documents of `val`."""
        return bool(self._repeated)

    def compare(self, block: Block) -> None:
        """Look for the documents of a block of `train`."""
        repeated = self._counts.keys() & set(block.hashes.tolist())
        if repeated and self._example is None:
            first = next(index for index, value in enumerate(block.hashes.tolist()) if value in repeated)
            self._example = block.document(first)
        self._repeated |= repeated

    def refuse_repetitions(self) -> None:
        """Raise a UserError with the number of the documents that `compare` has found, if there are any."""
        if self._repeated:
            raise UserError(
                f"data.val_files: {sum(self._counts[value] for value in self._repeated):,} of {self._counts.total():,} "
                f"documents are also in data.train_files, such as {quote(self._example)}; remove them from one of the "
                "two, or leave val_files empty to hold out a part of train_files"
            )

    def to_array(self) -> np.ndarray:
        """The hashes of the documents of `val`, as often as they occur (uint64)."""
        return np.fromiter(self._counts.elements(), np.uint64, self._counts.total())
