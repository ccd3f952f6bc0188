"""Open the corpus that the section `data` describes: the documents of both splits, and their provenance."""

import itertools
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lm.corpus.config import END_OF_TEXT, DataConfig
from lm.corpus.documents import normalize, split_at_end_of_text
from lm.corpus.files import TextFile, expand_names, held_out, open_file, read_documents
from lm.corpus.repetitions import RepetitionCounter, drop_copies, refuse_repetitions
from lm.corpus.stories import stories
from lm.errors import UserError, quote

TINYSTORIES = "roneneldan/TinyStories"
TINYSTORIES_FILES = ("TinyStoriesV2-GPT4-valid.txt", "TinyStoriesV2-GPT4-train.txt")
OPENWEBTEXT_FILES = ("owt_valid.txt.gz", "owt_train.txt.gz")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The documents of both splits.

    Read `val` before `train`: they may share one stream, of which `val` takes the first documents. `provenance` has one
    entry per file, with its URL or path, size and sha256. After the splits were read, `repetitions` can report the
    documents that were read more than once.
    """

    val: Iterable[str]
    train: Iterable[str]
    provenance: list[dict[str, str | int]]
    repetitions: tuple[RepetitionCounter, ...] = ()


def open_corpus(data: DataConfig, cache: Path) -> Corpus:
    """Find or download the files that `data` names. Their documents are read lazily.

    Raises:
        UserError: If a file or URL is missing or cannot be read; see `lm.corpus.files`, `.hub` and `.web`.
    """
    match data.source:
        case "stories":
            seeds = story_seeds(data.seed)
            return Corpus(val=_story_texts(seeds["val"]), train=_story_texts(seeds["train"]), provenance=[])
        case "tinystories" | "openwebtext":
            return _open_hub(data, cache)
        case "files":
            return _open_files(data, cache)


def story_seeds(seed: int) -> dict[str, int]:
    """Return the seed of each split. No two splits share a seed, even for different values of `data.seed`."""
    return {"train": 2 * seed, "val": 2 * seed + 1}


def story_bits(seed: int, documents: int) -> float:
    """Return the sum of -log2 p over the first stories of a seed, in bits: on average, no model can do better."""
    return math.fsum(story.bits for story in itertools.islice(stories(seed), documents))


def _story_texts(seed: int) -> Iterator[str]:
    return (story.text for story in stories(seed))


def _open_hub(data: DataConfig, cache: Path) -> Corpus:
    from lm.corpus import hub  # huggingface_hub is slow to import, and the other sources work without it

    if data.source == "tinystories":
        snapshot, (val_name, train_name) = hub.pin(TINYSTORIES, "main", cache), TINYSTORIES_FILES
    else:
        snapshot, (val_name, train_name) = hub.pin(data.repository, data.revision, cache), OPENWEBTEXT_FILES
    if data.source == "openwebtext" and not {val_name, train_name} <= set(snapshot.files):
        if not any(name.endswith(".parquet") for name in snapshot.files):
            raise UserError(
                f"data.repository: {data.repository} has neither {' and '.join(OPENWEBTEXT_FILES)} "
                "nor Parquet files; choose another one"
            )
        if not data.val_bytes:
            raise UserError(
                f"data.val_bytes: expected more than 0, got 0; the first documents in the Parquet files of "
                f"{data.repository} become the validation split, so set its size"
            )
        values = hub.stream_parquet(snapshot, data.text_column, cache)
        stream = itertools.chain.from_iterable(split_at_end_of_text(normalize(value)) for value in values)
        return Corpus(val=stream, train=stream, provenance=hub.parquet_provenance(snapshot))
    val = hub.fetch(snapshot, val_name, cache)  # the small file first, so that a mistake shows at once
    train = hub.fetch(snapshot, train_name, cache)
    return Corpus(
        val=read_documents(val, END_OF_TEXT, data.text_column),
        train=read_documents(train, END_OF_TEXT, data.text_column),
        provenance=[train.provenance, val.provenance],
    )


def _open_files(data: DataConfig, cache: Path) -> Corpus:
    train_names = expand_names(data.train_files, "train_files")
    val_names = expand_names(data.val_files, "val_files")
    train_files = drop_copies([open_file(name, cache) for name in train_names], "train_files")
    val_files = drop_copies([open_file(name, cache) for name in val_names], "val_files")
    for train, val in itertools.product(train_files, val_files):
        if train.provenance["sha256"] == val.provenance["sha256"]:
            raise UserError(
                f"data.val_files: {val.name} has the same content as {train.name} in data.train_files; "
                "remove it from one of the two"
            )

    is_reported = False

    def on_missing(name: str) -> None:
        nonlocal is_reported
        if not is_reported:  # one line is enough, even for thousands of files
            _report_missing_separator(name, data.separator)
            is_reported = True

    def documents(files: list[TextFile]) -> Iterator[str]:
        for file in files:
            yield from read_documents(file, data.separator, data.text_column, on_missing)

    provenance = [file.provenance for file in train_files + val_files]
    in_train, in_val = RepetitionCounter("train_files"), RepetitionCounter("val_files")
    if val_files:
        checked_val, checked_train = refuse_repetitions(documents(val_files), documents(train_files))
        return Corpus(
            val=in_val.count(checked_val),
            train=in_train.count(checked_train),
            provenance=provenance,
            repetitions=(in_val, in_train),
        )

    def is_val(document: str) -> bool:
        return held_out(document, data.seed, data.val_fraction)

    val_documents = filter(is_val, documents(train_files))
    train_documents = itertools.filterfalse(is_val, documents(train_files))
    return Corpus(
        val=_require_documents(in_train.count(val_documents), "val", data.separator),
        train=_require_documents(in_train.count(train_documents), "train", data.separator),
        provenance=provenance,
        repetitions=(in_train,),
    )


def _report_missing_separator(name: str, separator: str) -> None:
    """Print that a text file is a single document, or refuse a separator that was clearly meant differently."""
    problem = f"{quote(name)[1:-1]}: data.separator {quote(separator)} does not occur in the text"
    if "\\" in separator and re.fullmatch(r"(\\[nrt]|[^\\\w])+", separator):
        meant = separator.replace(r"\n", "\n").replace(r"\r", "\r").replace(r"\t", "\t")
        raise UserError(
            f"{problem}; it has a backslash and a letter in place of a line end or tab: write it in params.yaml with "
            f"double quotes, as separator: {json.dumps(meant, ensure_ascii=False)}"
        )
    print(f"{problem}, so the file is one document, as are others without it", file=sys.stderr)


def _require_documents(documents: Iterable[str], split: str, separator: str) -> Iterator[str]:
    """Yield the documents. If there are none, explain what decides how many there are."""
    empty = True
    for document in documents:
        empty = False
        yield document
    if empty:
        raise UserError(
            f"data.train_files: too few documents, none is left for {split}; check data.separator, which is "
            f"{quote(separator)}, and data.text_column, change data.val_fraction, or set data.val_files"
        )
