"""Find text that would be in the corpus twice."""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

from lm.corpus.files import TextFile
from lm.errors import UserError, quote

MAX_REMEMBERED = 1_000_000


def drop_copies(files: list[TextFile], key: str) -> list[TextFile]:
    """Drop files with the same content as an earlier one in the list data.`key`, and print a line about each.

    Copies are often one file under two names: a relative and an absolute path, a link, or two spellings of a URL.
    """
    kept: dict[str | int, TextFile] = {}
    for file in files:
        first = kept.setdefault(file.provenance["sha256"], file)
        if first is not file:
            print(
                f"data.{key}: {quote(file.name)} has the same content as {quote(first.name)}; it is used once",
                file=sys.stderr,
            )
    return list(kept.values())


class RepetitionCounter:
    """Counts the documents of the files in the list data.`key` that repeat an earlier one, while they are read.

    Documents that differ only in the white space around them are equal. Only the first MAX_REMEMBERED different
    documents are compared with later ones, which bounds the memory to about 80 MB.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._documents = self._repeated = 0
        self._remembered: set[bytes] = set()

    def count(self, documents: Iterable[str]) -> Iterator[str]:
        """Yield the same documents, and count those that are read."""
        for document in documents:
            self._documents += 1
            digest = _hash(document)
            if digest in self._remembered:
                self._repeated += 1
            elif len(self._remembered) < MAX_REMEMBERED:
                self._remembered.add(digest)
            yield document

    def report(self) -> None:
        """Print a line to stderr if documents repeat. Text corpora often do, so this is no error."""
        if self._repeated:
            at_least = "at least " * (len(self._remembered) == MAX_REMEMBERED)
            print(
                f"data.{self._key}: {at_least}{self._repeated:,} of {self._documents:,} documents repeat earlier ones; "
                "they are kept",
                file=sys.stderr,
            )


def refuse_repetitions(val: Iterable[str], train: Iterable[str]) -> tuple[Iterator[str], Iterator[str]]:
    """Return the same documents of both splits, checked when they are read: `val` first, then `train`.

    Documents that differ only in the white space around them are equal. Memory holds 8 bytes and a counter per document
    of `val` that was read, whatever the length of `train`.

    Raises:
        UserError: When a document of `train` is also one of those that were read from `val`. The message gives their
            number, for which `train` is read to its end.
    """
    counts: Counter[bytes] = Counter()

    def remember() -> Iterator[str]:
        for document in val:
            counts[_hash(document)] += 1
            yield document

    def check() -> Iterator[str]:
        documents = iter(train)
        for document in documents:
            if _hash(document) in counts:
                repeated = {_hash(document)} | (counts.keys() & map(_hash, documents))
                raise UserError(
                    f"data.val_files: {sum(counts[key] for key in repeated):,} of {counts.total():,} documents are "
                    f"also in data.train_files, such as {quote(document)}; remove them from one of the two, or leave "
                    "val_files empty to hold out a part of train_files"
                )
            yield document

    return remember(), check()


def _hash(document: str) -> bytes:
    """64 bits: between a million documents and a billion others, the probability of a collision is 0.005%."""
    return hashlib.sha256(document.strip().encode()).digest()[:8]
