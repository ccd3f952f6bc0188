"""Write a corpus to data/raw: read its pieces, on several workers if there is a cluster, and divide it into shards.

Until the corpus is complete, its text is in a folder of its own, with a record of the pieces that have been read. The
run after an interrupted one continues after those pieces.
"""

import json
import re
import shutil
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from lm.atomic import make_folder, translate_write_errors
from lm.cluster import flat_map
from lm.corpus.blocks import Block
from lm.corpus.config import DataConfig
from lm.corpus.repetitions import RepetitionCounter, ValDocuments
from lm.corpus.sources import Corpus, MissingSeparator, Opened, Part, PieceEnd, read
from lm.corpus.splits import ShardFacts, SplitWriter
from lm.errors import UserError, quote
from lm.progress import ProgressRecord
from lm.shards import SPLITS, shard_names


def write_corpus(data: DataConfig, corpus: Corpus, raw: Path, unfinished: Path, cluster: str) -> dict[str, Any]:
    """Write the text of all splits, and return the manifest's entries `splits` and `provenance`.

    Args:
        data: The section `data`.
        corpus: What `open_corpus` returned for it.
        raw: The existing folder for the text files.
        unfinished: The folder for an unfinished corpus. What an interrupted call for the same corpus has left there is
            continued; anything else is deleted.
        cluster: Where the pieces are read, as in `flat_map`.

    Raises:
        UserError: A piece cannot be read, a split has no documents, `train_files` repeats documents or a file of
            `val_files`, or a file cannot be written.
    """
    writer = _CorpusWriter(data, corpus, unfinished)
    try:
        writer.write(cluster)
    finally:
        writer.close()
    return writer.finish(raw)


class _CorpusWriter:
    def __init__(self, data: DataConfig, corpus: Corpus, folder: Path) -> None:
        self._data, self._corpus, self._folder = data, corpus, folder
        self._record = ProgressRecord(folder, corpus.identity)
        state, arrays = self._record.read()
        if not state:
            shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        limits = {"val": (data.val_bytes, 0), "train": (data.train_bytes, data.train_documents)}
        shards: dict[str, list[ShardFacts]] = state.get("shards", {})
        self._writers = {split: SplitWriter(folder, split, *limits[split], shards.get(split)) for split in SPLITS}
        self._part, self._pieces = state.get("position", (0, 0))  # the part that is read, and its pieces so far
        self._provenance: dict[str, list[Any]] = state.get("provenance", {"train_files": [], "val_files": []})
        self._names: dict[str, str] = state.get("names", {})  # of the files that have been read, by sha256
        self._warned = state.get("warned", False)
        self._repetitions = {
            key: RepetitionCounter(key, state.get("repetitions", {}).get(key, (0, 0)), arrays.get(key))
            for key in ("val_files", "train_files")
        }
        self._val_documents = ValDocuments(arrays.get("val_documents"))

    def write(self, cluster: str) -> None:
        for index, part in enumerate(self._corpus.parts):
            if index >= self._part:
                if index > self._part:
                    self._part, self._pieces = index, 0
                self._write_part(part, cluster)
                self._val_documents.refuse_repetitions()
        for writer in self._writers.values():
            writer.sync()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def finish(self, raw: Path) -> dict[str, Any]:
        """Move the text to the folder `raw`, report repetitions, and return what `write_corpus` returns."""
        splits = {}
        for split, writer in self._writers.items():
            if not writer.documents:
                raise self._without_documents(split, raw)
        with translate_write_errors(self._folder):
            self._record.delete()  # it must not name files that have been moved
        for split, writer in self._writers.items():
            names = shard_names(split, len(writer.shards), ".txt")
            with translate_write_errors(raw):
                for source, name in zip(writer.paths, names, strict=True):
                    shutil.move(source, raw / name)
            splits[split] = {"bytes": writer.bytes, "documents": writer.documents, "shards": writer.shards}
        shutil.rmtree(self._folder, ignore_errors=True)
        for counter in self._repetitions.values():
            counter.report()
        read_files = self._provenance["train_files"] + self._provenance["val_files"]
        return {"splits": splits, "provenance": self._corpus.provenance or read_files}

    def _write_part(self, part: Part, cluster: str) -> None:
        pieces = part.pieces[self._pieces :]
        # Sending a single piece to another machine would gain nothing.
        where = cluster if len(pieces) > 1 else "none"
        key = "val_files" if part.splits == ("val",) else "train_files"
        is_copy = False
        with closing(flat_map(read, pieces, where)) as results:
            for result in results:
                if all(self._writers[split].is_full for split in part.splits) and not self._val_documents.found:
                    return
                match result:
                    case Opened():
                        is_copy = self._is_copy(result, key)
                        if not is_copy:
                            self._provenance[key].append(result.provenance)
                    case MissingSeparator(name) if not is_copy and not self._warned:
                        self._report_missing_separator(name)
                    case Block() if not is_copy:
                        self._write_block(result, part, key)
                    case PieceEnd():
                        self._pieces += 1
                        # Once documents of val are found, the run ends with an error; the next one must find them too.
                        if self._record.is_due and not self._val_documents.found:
                            self._save()

    def _write_block(self, block: Block, part: Part, key: str) -> None:
        for split in (block.split,) if block.split else part.splits:
            taken = block.before(self._writers[split].add(block))
            if self._data.source == "files":
                self._repetitions[key].count(taken.hashes)
                if self._data.val_files and split == "val":
                    self._val_documents.remember(taken.hashes)
                elif self._data.val_files:
                    # Once one is found, all documents are compared, to count them.
                    self._val_documents.compare(block if self._val_documents.found else taken)
            block = block.after(len(taken))

    def _is_copy(self, file: Opened, key: str) -> bool:
        """Whether a file has the same content as an earlier one; a line about it is printed.

        Copies are often one file under two names: a relative and an absolute path, a link, or two spellings of a URL.

        Raises:
            UserError: The earlier one is in the other split.
        """
        sha256 = str(file.provenance["sha256"])
        if sha256 not in self._names:
            self._names[sha256] = file.name
            return False
        first = self._names[sha256]
        if all(entry["sha256"] != sha256 for entry in self._provenance[key]):
            raise UserError(
                f"data.val_files: {first} has the same content as {file.name} in data.train_files; remove it from one "
                "of the two"
            )
        line = f"data.{key}: {quote(file.name)} has the same content as {quote(first)}; it is used once"
        print(line, file=sys.stderr)
        return True

    def _report_missing_separator(self, name: str) -> None:
        """Print that a text file is a single document, or refuse a separator that was clearly meant differently."""
        separator = self._data.separator
        problem = f"{quote(name)[1:-1]}: data.separator {quote(separator)} does not occur in the text"
        if "\\" in separator and re.fullmatch(r"(\\[nrt]|[^\\\w])+", separator):
            meant = separator.replace(r"\n", "\n").replace(r"\r", "\r").replace(r"\t", "\t")
            raise UserError(
                f"{problem}; it has a backslash and a letter in place of a line end or tab: write it in params.yaml "
                f"with double quotes, as separator: {json.dumps(meant, ensure_ascii=False)}"
            )
        # One line is enough, even for thousands of files.
        print(f"{problem}, so the file is one document, as are others without it", file=sys.stderr)
        self._warned = True

    def _without_documents(self, split: str, raw: Path) -> UserError:
        data = self._data
        if data.source == "files" and not data.val_files:
            return UserError(
                f"data.train_files: too few documents, none is left for {split}; check data.separator, which is "
                f"{quote(data.separator)}, and data.text_column, change data.val_fraction, or set data.val_files"
            )
        return UserError(
            f"{raw / split}.txt: the source has no documents for this split; with data.source files, check "
            "data.separator and data.text_column, and increase data.val_fraction or set data.val_files"
        )

    def _save(self) -> None:
        state = {
            "shards": {split: writer.sync() for split, writer in self._writers.items()},
            "position": (self._part, self._pieces),
            "provenance": self._provenance,
            "names": self._names,
            "warned": self._warned,
            "repetitions": {key: (counter.documents, counter.repeated) for key, counter in self._repetitions.items()},
        }
        repetitions = {key: counter.to_array() for key, counter in self._repetitions.items()}
        self._record.write(state, {"val_documents": self._val_documents.to_array(), **repetitions})
