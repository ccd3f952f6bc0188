"""Counting the pre-tokens of a text that is divided into files, on several workers if there is a cluster."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lm.atomic import make_folder
from lm.cluster import SharedPath, flat_map, share
from lm.progress import ProgressRecord
from lm.tokenizer.text.fast.tables import automaton_tables
from lm.tokenizer.text.fast.text_file import FileSource
from lm.tokenizer.text.pretokenization import PreTokenizer
from lm.tokenizer.text.text_file import read_text
from lm.tokenizer.training import counting
from lm.tokenizer.training.fast import counting as fast_counting
from lm.tokenizer.training.fast.counting import CountTable

Counts = Counter[str] | CountTable


@dataclass(frozen=True, kw_only=True)
class CountPiece:
    """A file, and how to count its pre-tokens: in Python, or with the kernels (`fast`) in `num_threads` threads."""

    text: SharedPath
    special_tokens: tuple[str, ...]
    pattern: str
    fast: bool
    num_threads: int


def count_piece(piece: CountPiece) -> Iterator[Counts]:
    """Yield the counts of the pre-tokens of a file, as a single result."""
    with piece.text.local_file() as path:
        if piece.fast:
            automaton = automaton_tables(piece.pattern)
            with FileSource.open(path, "counting") as source:
                counts = fast_counting.count_pre_tokens(source, automaton, piece.special_tokens, piece.num_threads)
            yield counts
        else:
            pre_tokenizer = PreTokenizer(piece.pattern, piece.special_tokens)
            yield counting.count_pre_tokens(read_text(path, "counting"), pre_tokenizer)


def count_files(
    paths: Sequence[Path],
    special_tokens: Sequence[str],
    pattern: str,
    *,
    fast: bool,
    num_threads: int,
    cluster: str = "none",
    unfinished: Path | None = None,
) -> Counts:
    """Count the pre-tokens of several files; the sum does not depend on where each file is counted.

    Args:
        paths: The files. None of them ends within a pre-token of the text.
        special_tokens: Texts that separate documents and are not counted.
        pattern: A name in `PATTERNS`, such as `gpt2`, or a regular expression.
        fast: Whether to use the kernels; the pattern must be one that `compile_automaton` supports.
        num_threads: How many threads count without a cluster.
        cluster: Where the files are counted, as in `flat_map`.
        unfinished: A folder for the counts of the first files, from which the next call for the same files continues
            after an interruption.

    Raises:
        UserError: A file cannot be read or is not UTF-8.
    """
    progress = _Progress(
        unfinished if len(paths) > 1 else None, repr((_versions(paths), special_tokens, pattern, fast))
    )
    left = paths[progress.num_files :]
    where = cluster if len(left) > 1 else "none"
    pieces = [
        CountPiece(
            text=share(path, where),
            special_tokens=tuple(special_tokens),
            pattern=pattern,
            fast=fast,
            num_threads=num_threads if where == "none" else 1,
        )
        for path in left
    ]
    bar = tqdm(
        desc="counting",
        total=len(paths),
        initial=progress.num_files,
        unit="shard",
        disable=True if where == "none" else None,  # without a cluster, reading a file shows a bar of its own
    )
    with bar, closing(flat_map(count_piece, pieces, where)) as results:
        for counts in results:
            progress.add(counts)
            bar.update()
    return progress.total if progress.total is not None else Counter()


def _versions(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Facts about each file that change when the file changes."""
    found = [(path, path.stat()) for path in paths if path.is_file()]
    return [(str(path), status.st_size, status.st_mtime_ns) for path, status in found]


class _Progress:
    """The sum of the counts of the first files."""

    def __init__(self, folder: Path | None, identity: str) -> None:
        self._record = ProgressRecord(folder, identity) if folder else None
        self.num_files = 0
        self.total: Counts | None = None
        if folder and self._record:
            make_folder(folder)
            state, arrays = self._record.read()
            self.num_files = state.get("num_files", 0)
            if self.num_files:
                self.total = CountTable.from_arrays(arrays) if arrays else Counter(state["counter"])

    def add(self, counts: Counts) -> None:
        self.num_files += 1
        match self.total, counts:
            case None, _:
                self.total = counts
            case CountTable() as total, CountTable():
                total.add_counts(counts)
            case Counter() as counter, Counter():
                counter.update(counts)
        if self._record and self._record.is_due:
            if isinstance(self.total, CountTable):
                self._record.write({"num_files": self.num_files}, self.total.to_arrays())
            else:
                self._record.write({"num_files": self.num_files, "counter": self.total}, {})
