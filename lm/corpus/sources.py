"""The pieces of the corpus that the section `data` describes, and reading them.

A piece is what one worker reads: local files, a file of a repository on the hub, or stories. `open_corpus` lists the
pieces without reading any, and `read` reads one.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.cluster import SharedPath, share
from lm.corpus.blocks import Block, to_blocks
from lm.corpus.config import END_OF_TEXT, DataConfig
from lm.corpus.documents import normalize, split_at_end_of_text
from lm.corpus.files import TextFile, expand_names, held_out, open_path, open_url, read_documents
from lm.corpus.stories import stories
from lm.corpus.urls import is_url
from lm.errors import UserError
from lm.shards import SHARD_BYTES

TINYSTORIES = "roneneldan/TinyStories"
TINYSTORIES_FILES = ("TinyStoriesV2-GPT4-valid.txt", "TinyStoriesV2-GPT4-train.txt")
OPENWEBTEXT_FILES = ("owt_valid.txt.gz", "owt_train.txt.gz")


@dataclass(frozen=True)
class Opened:
    """The first result of reading a file: its name, and its entry in the manifest with its path or URL, and sha256."""

    name: str
    provenance: dict[str, str | int]


@dataclass(frozen=True)
class MissingSeparator:
    """A result of reading a text file, before its only document: the separator does not occur in it."""

    name: str


@dataclass(frozen=True)
class PieceEnd:
    """The last result of reading a piece."""


Reading = Opened | MissingSeparator | Block | PieceEnd


@dataclass(frozen=True, kw_only=True)
class StoriesPiece:
    """Stories of the built-in grammar up to a limit (see `SplitWriter`)."""

    split: str
    seed: int
    max_bytes: int
    max_documents: int

    def read(self) -> Iterator[Reading]:
        yield from to_blocks(self._texts(), lambda text: self.split)

    def _texts(self) -> Iterator[str]:
        size = 0
        for count, story in enumerate(stories(self.seed), start=1):
            yield story.text
            size += len(story.text.encode())
            if 0 < self.max_bytes <= size or 0 < self.max_documents <= count:
                return


@dataclass(frozen=True, kw_only=True)
class FilesPiece:
    """Files of `data.source: files` that follow each other.

    Attributes:
        split: The split of all their documents. If it is None, `seed` and `val_fraction` decide for each.
        files: The name of each file, which is a path or URL, and where it is, which is None for a URL.
        cache: The folder for downloads.
    """

    split: str | None
    files: list[tuple[str, SharedPath | None]]
    cache: SharedPath
    separator: str
    text_column: str
    seed: int
    val_fraction: float

    def read(self) -> Iterator[Reading]:
        for name, shared in self.files:
            if shared is None:
                with self.cache.local_folder() as cache:
                    yield from self._read(open_url(name, cache))
            else:
                with shared.local_file() as path:
                    yield from self._read(open_path(name, path))

    def _read(self, file: TextFile) -> Iterator[Reading]:
        yield Opened(file.name, file.provenance)
        missing: list[str] = []
        documents = read_documents(file, self.separator, self.text_column, missing.append)
        first = list(itertools.islice(documents, 1))
        if missing:
            yield MissingSeparator(missing[0])
        yield from to_blocks(itertools.chain(first, documents), self._split_of)

    def _split_of(self, document: str) -> str:
        if self.split is not None:
            return self.split
        return "val" if held_out(document, self.seed, self.val_fraction) else "train"


@dataclass(frozen=True, kw_only=True)
class HubPiece:
    """A text file of a repository on the hub. Parquet files are streamed, and the writer divides them into splits."""

    split: str | None
    snapshot: Any  # lm.corpus.hub.Snapshot; huggingface_hub is slow to import, and the other sources work without it
    name: str
    cache: SharedPath
    text_column: str

    def read(self) -> Iterator[Reading]:
        from lm.corpus import hub

        with self.cache.local_folder() as cache:
            documents: Iterator[str]
            if self.split is None:
                values = hub.stream_parquet(self.snapshot, self.name, self.text_column, cache)
                documents = (text for value in values for text in split_at_end_of_text(normalize(value)))
            else:
                file = hub.fetch(self.snapshot, self.name, cache)
                yield Opened(file.name, file.provenance)
                documents = read_documents(file, END_OF_TEXT, self.text_column)
            yield from to_blocks(documents, lambda document: self.split)


Piece = StoriesPiece | FilesPiece | HubPiece


@dataclass(frozen=True, kw_only=True)
class Part:
    """Pieces that are read in their order until the splits that they fill are full.

    A document without a split belongs to the first one that is not full.
    """

    splits: tuple[str, ...]
    pieces: list[Piece]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The parts of a corpus, in the order of reading.

    `provenance` has the entries of the manifest that are known before reading. `identity` is equal for corpora with the
    same pieces.
    """

    parts: list[Part]
    provenance: list[dict[str, str | int]]
    identity: str


def read(piece: Piece) -> Iterator[Reading]:
    """Read a piece: for a file `Opened`, then its documents in blocks, and `PieceEnd`.

    Raises:
        UserError: The piece cannot be read; see `lm.corpus.files`, `.hub` and `.web`.
    """
    yield from piece.read()
    yield PieceEnd()


def open_corpus(data: DataConfig, cache: Path, cluster: str) -> Corpus:
    """List the pieces that `data` names.

    Args:
        data: The section `data`.
        cache: The folder for downloads.
        cluster: Where the pieces are read, as in `flat_map`.

    Raises:
        UserError: A file is missing, or the hub cannot be reached.
    """
    match data.source:
        case "stories":
            limits = {"val": (data.val_bytes, 0), "train": (data.train_bytes, data.train_documents)}
            seeds = story_seeds(data.seed)
            parts = [
                Part(
                    splits=(split,),
                    pieces=[StoriesPiece(split=split, seed=seeds[split], max_bytes=size, max_documents=count)],
                )
                for split, (size, count) in limits.items()
            ]
            return Corpus(parts=parts, provenance=[], identity=_identity(data))
        case "tinystories" | "openwebtext":
            return _open_hub(data, cache, cluster)
        case "files":
            return _open_files(data, cache, cluster)


def story_seeds(seed: int) -> dict[str, int]:
    """Return the seed of each split. No two splits share a seed, even for different values of `data.seed`."""
    return {"train": 2 * seed, "val": 2 * seed + 1}


def story_bits(seed: int, documents: int) -> float:
    """Return the sum of -log2 p over the first stories of a seed, in bits: on average, no model can do better."""
    return math.fsum(story.bits for story in itertools.islice(stories(seed), documents))


def _open_hub(data: DataConfig, cache: Path, cluster: str) -> Corpus:
    from lm.corpus import hub

    if data.source == "tinystories":
        snapshot, (val_name, train_name) = hub.pin(TINYSTORIES, "main", cache), TINYSTORIES_FILES
    else:
        snapshot, (val_name, train_name) = hub.pin(data.repository, data.revision, cache), OPENWEBTEXT_FILES

    def piece(name: str, split: str | None) -> HubPiece:
        shared = share(cache, cluster)
        return HubPiece(split=split, snapshot=snapshot, name=name, cache=shared, text_column=data.text_column)

    if data.source == "openwebtext" and not {val_name, train_name} <= set(snapshot.files):
        names = [name for name in snapshot.files if name.endswith(".parquet")]
        if not names:
            raise UserError(
                f"data.repository: {data.repository} has neither {' and '.join(OPENWEBTEXT_FILES)} "
                "nor Parquet files; choose another one"
            )
        if not data.val_bytes:
            raise UserError(
                f"data.val_bytes: expected more than 0, got 0; the first documents in the Parquet files of "
                f"{data.repository} become the validation split, so set its size"
            )
        part = Part(splits=("val", "train"), pieces=[piece(name, None) for name in names])
        provenance = hub.parquet_provenance(snapshot)
        return Corpus(parts=[part], provenance=provenance, identity=_identity(data, snapshot.commit))
    return Corpus(
        # The small file first, so that a mistake shows at once.
        parts=[
            Part(splits=("val",), pieces=[piece(val_name, "val")]),
            Part(splits=("train",), pieces=[piece(train_name, "train")]),
        ],
        provenance=[],
        identity=_identity(data, snapshot.commit),
    )


def _open_files(data: DataConfig, cache: Path, cluster: str) -> Corpus:
    def pieces(names: list[str], split: str | None) -> list[Piece]:
        return [
            FilesPiece(
                split=split,
                files=[(name, None if is_url(name) else share(Path(name), cluster)) for name in group],
                cache=share(cache, cluster),
                separator=data.separator,
                text_column=data.text_column,
                seed=data.seed,
                val_fraction=data.val_fraction,
            )
            for group in _groups(names)
        ]

    train_names = expand_names(data.train_files, "train_files")
    val_names = expand_names(data.val_files, "val_files")
    identity = _identity(data, *map(_version, train_names + val_names))
    if not val_names:
        part = Part(splits=("val", "train"), pieces=pieces(train_names, None))
        return Corpus(parts=[part], provenance=[], identity=identity)
    parts = [
        Part(splits=("val",), pieces=pieces(val_names, "val")),
        Part(splits=("train",), pieces=pieces(train_names, "train")),
    ]
    return Corpus(parts=parts, provenance=[], identity=identity)


def _version(name: str) -> str:
    """A text that changes when a local file changes; for a URL, the URL."""
    if is_url(name):
        return name
    status = Path(name).stat()
    return f"{name} {status.st_size} {status.st_mtime_ns}"


def _identity(data: DataConfig, *facts: str) -> str:
    return hashlib.sha256("\n".join([repr(data), *facts]).encode()).hexdigest()


def _groups(names: list[str]) -> Iterator[list[str]]:
    """Group small files that follow each other into pieces that are worth sending. Each URL is a piece of its own."""
    group: list[str] = []
    size = 0
    for name in names:
        if group and (is_url(name) or size >= SHARD_BYTES):
            yield group
            group, size = [], 0
        group.append(name)
        size += SHARD_BYTES if is_url(name) else Path(name).stat().st_size
    if group:
        yield group
