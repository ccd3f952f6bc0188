"""The section `data` -> the documents of both splits and where they come from."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lm.corpus.config import END_OF_TEXT, DataConfig
from lm.corpus.documents import without_marker
from lm.corpus.files import TextFile, find_names, held_out, open_file, read_documents
from lm.corpus.stories import stories
from lm.errors import UserError

TINYSTORIES = "roneneldan/TinyStories"
TINYSTORIES_FILES = ("TinyStoriesV2-GPT4-valid.txt", "TinyStoriesV2-GPT4-train.txt")
OPENWEBTEXT_FILES = ("owt_valid.txt.gz", "owt_train.txt.gz")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Read `val` before `train`: where one stream feeds both, val takes its first documents and train goes on."""

    val: Iterable[str]
    train: Iterable[str]
    provenance: list[dict[str, str | int]]


def open_corpus(data: DataConfig, cache: Path) -> Corpus:
    """Find and download what the section `data` names; the documents are then read lazily.

    Raises:
        UserError: a file or address that cannot be had, as `lm.corpus.files`, `.hub` and `.web` say.
    """
    match data.source:
        case "stories":
            seeds = story_seeds(data.seed)
            return Corpus(val=_story_texts(seeds["val"]), train=_story_texts(seeds["train"]), provenance=[])
        case "tinystories" | "openwebtext":
            return _hub(data, cache)
        case "files":
            return _files(data, cache)


def story_seeds(seed: int) -> dict[str, int]:
    """A seed of its own for each split, different for every `data.seed`."""
    return {"train": 2 * seed, "val": 2 * seed + 1}


def story_bits(seed: int, documents: int) -> float:
    """-log2 of the probability of the first stories of a split: what no model can beat on average, in bits."""
    return math.fsum(story.bits for story in itertools.islice(stories(seed), documents))


def _story_texts(seed: int) -> Iterator[str]:
    return (story.text for story in stories(seed))


def _hub(data: DataConfig, cache: Path) -> Corpus:
    from lm.corpus import hub  # huggingface_hub takes a while to import, and other sources run without it

    if data.source == "tinystories":
        snapshot, (val_name, train_name) = hub.pin(TINYSTORIES, "main", cache), TINYSTORIES_FILES
    else:
        snapshot, (val_name, train_name) = hub.pin(data.repository, data.revision, cache), OPENWEBTEXT_FILES
    if data.source == "openwebtext" and not {val_name, train_name} <= set(snapshot.files):
        if not any(name.endswith(".parquet") for name in snapshot.files):
            raise UserError(
                f"data.repository: {data.repository} holds neither {' and '.join(OPENWEBTEXT_FILES)} "
                "nor parquet files; name another one"
            )
        if not data.val_bytes:
            raise UserError(
                f"data.val_bytes: expected more than 0 for the parquet files of {data.repository}, whose first "
                "documents become val, got 0"
            )
        values = hub.stream_parquet(snapshot, data.text_column, cache)
        stream = itertools.chain.from_iterable(without_marker(value) for value in values)
        return Corpus(val=stream, train=stream, provenance=hub.parquet_provenance(snapshot))
    val = hub.fetch(snapshot, val_name, cache)  # the small one first: a mistake shows at once
    train = hub.fetch(snapshot, train_name, cache)
    return Corpus(
        val=read_documents(val, END_OF_TEXT, data.text_column),
        train=read_documents(train, END_OF_TEXT, data.text_column),
        provenance=[train.provenance, val.provenance],
    )


def _files(data: DataConfig, cache: Path) -> Corpus:
    train_names = find_names(data.train_files, "train_files")
    val_names = find_names(data.val_files, "val_files")
    train_files = [open_file(name, cache) for name in train_names]
    val_files = [open_file(name, cache) for name in val_names]
    for train, val in itertools.product(train_files, val_files):
        if train.provenance["sha256"] == val.provenance["sha256"]:
            raise UserError(f"data.val_files: {val.name} holds the text of {train.name}, which is in data.train_files")

    def documents(files: list[TextFile]) -> Iterator[str]:
        for file in files:
            yield from read_documents(file, data.separator, data.text_column)

    provenance = [file.provenance for file in train_files + val_files]
    if val_files:
        return Corpus(val=documents(val_files), train=documents(train_files), provenance=provenance)

    def is_val(document: str) -> bool:
        return held_out(document, data.seed, data.val_fraction)

    return Corpus(
        val=filter(is_val, documents(train_files)),
        train=itertools.filterfalse(is_val, documents(train_files)),
        provenance=provenance,
    )
