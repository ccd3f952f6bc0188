"""Find text that would be in the corpus twice."""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

from lm.corpus.files import TextFile
from lm.errors import UserError, quote


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
    """64 bits: with a million documents in val and a billion in train, the probability of a collision is 0.005%."""
    return hashlib.sha256(document.strip().encode()).digest()[:8]
