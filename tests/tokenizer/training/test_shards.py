import io
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.errors import UserError
from lm.tokenizer import reference
from lm.tokenizer.training import shards as module
from lm.tokenizer.training.bpe import train_bpe
from lm.tokenizer.training.fast.counting import CountTable
from lm.tokenizer.training.shards import CountPiece, Counts, count_files, count_piece
from tests.tokenizer.training.fast.test_counting import counts_of

END = "<|endoftext|>"

both_paths = pytest.mark.parametrize("fast", [False, True], ids=["Python", "kernels"])
pytestmark = pytest.mark.usefixtures("kernels")


def as_counter(counts: Counts) -> Counter[bytes]:
    """The counts of the pre-tokens that have at least two bytes."""
    if isinstance(counts, CountTable):
        return counts_of(counts)
    found = Counter({text.encode(): count for text, count in counts.items()})
    return Counter({text: count for text, count in found.items() if len(text) >= 2})


def reference_counts(text: str) -> Counter[bytes]:
    found = Counter(token.encode() for token in reference.pre_tokenize(text, [END]) if token != END)
    return Counter({token: count for token, count in found.items() if len(token) >= 2})


def write_files(folder: Path, texts: list[str]) -> list[Path]:
    paths = [folder / f"train-{index:05d}.txt" for index in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    return paths


def count(paths: list[Path], fast: bool, unfinished: Path | None = None) -> Counter[bytes]:
    return as_counter(count_files(paths, [END], "gpt2", fast=fast, num_threads=1, unfinished=unfinished))


@pytest.fixture
def texts(text: str) -> list[str]:
    """A text in five files, each of which ends with a document."""
    documents = [document + END for document in text.split(END)[:-1]]
    borders = np.linspace(0, len(documents), 6).astype(int).tolist()
    return ["".join(documents[begin:end]) for begin, end in itertools.pairwise(borders)]


@both_paths
def test_the_counts_of_several_files_are_those_of_the_whole_text(tmp_path: Path, texts: list[str], fast: bool) -> None:
    paths = write_files(tmp_path, texts)
    assert count(paths, fast) == reference_counts("".join(texts))


@both_paths
@settings(max_examples=25)
@given(st.lists(st.lists(st.text("the é\n'1", max_size=9), min_size=1, max_size=3), min_size=1, max_size=4))
def test_the_counts_of_any_documents_are_those_of_the_whole_text(
    tmp_path_factory: pytest.TempPathFactory, fast: bool, files: list[list[str]]
) -> None:
    texts = ["".join(document + END for document in documents) for documents in files]
    paths = write_files(tmp_path_factory.getbasetemp(), texts)
    assert count(paths, fast) == reference_counts("".join(texts))


def test_no_files_have_no_counts() -> None:
    assert count([], fast=False) == Counter()


@both_paths
def test_training_on_several_files_gives_the_merges_of_the_whole_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, fast: bool
) -> None:
    part = text[:30_000]
    monkeypatch.setattr("lm.tokenizer.training.bpe._MIN_BYTES_FOR_FAST", 0 if fast else 1 << 30)
    documents = part.split(END)
    middle = len(documents) // 2
    texts = [END.join(documents[:middle]) + END, END.join(documents[middle:])]
    paths = write_files(tmp_path, texts)
    assert train_bpe(paths, 400, [END], unfinished=tmp_path / "unfinished") == reference.train(part, 400, [END])


class Interrupted(Exception):
    pass


Interrupt = Callable[[int], list[str]]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """Return a function that makes counting fail after n files; it returns the names of the files that are read."""
    monkeypatch.setattr("lm.progress.ProgressRecord.is_due", True)

    def interrupt_after(number: int) -> list[str]:
        read: list[str] = []

        def count_some(piece: CountPiece) -> Iterator[Counts]:
            if len(read) == number:
                raise Interrupted
            read.append(piece.text.path.name)
            yield from count_piece(piece)

        monkeypatch.setattr(module, "count_piece", count_some)
        return read

    return interrupt_after


def assert_interrupted(paths: list[Path], fast: bool, unfinished: Path, interrupt: Interrupt, number: int) -> None:
    read = interrupt(number)
    with pytest.raises(Interrupted):
        count(paths, fast, unfinished)
    assert len(read) == number


@both_paths
@pytest.mark.parametrize("number", [0, 1, 4])
def test_interrupted_counting_continues_after_the_finished_files(
    tmp_path: Path, texts: list[str], interrupt: Interrupt, fast: bool, number: int
) -> None:
    paths = write_files(tmp_path, texts)
    assert_interrupted(paths, fast, tmp_path / "unfinished", interrupt, number)
    read = interrupt(100)
    assert count(paths, fast, tmp_path / "unfinished") == reference_counts("".join(texts))
    assert read == [path.name for path in paths[number:]]
    # When all files have been counted, none is read again.
    read = interrupt(0)
    assert count(paths, fast, tmp_path / "unfinished") == reference_counts("".join(texts))


@both_paths
def test_interrupted_training_gives_the_same_tokenizer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, texts: list[str], interrupt: Interrupt, fast: bool
) -> None:
    monkeypatch.setattr("lm.tokenizer.training.bpe._MIN_BYTES_FOR_FAST", 0 if fast else 1 << 30)
    paths = write_files(tmp_path, texts)
    expected = train_bpe(paths, 500, [END])
    for number in (2, 1):
        interrupt(number)
        with pytest.raises(Interrupted):
            train_bpe(paths, 500, [END], unfinished=tmp_path / "unfinished")
    interrupt(100)
    assert train_bpe(paths, 500, [END], unfinished=tmp_path / "unfinished") == expected


@both_paths
@pytest.mark.parametrize("changed", [0, 4])
def test_a_changed_file_starts_over(
    tmp_path: Path, texts: list[str], interrupt: Interrupt, fast: bool, changed: int
) -> None:
    paths = write_files(tmp_path, texts)
    assert_interrupted(paths, fast, tmp_path / "unfinished", interrupt, 3)
    texts[changed] = texts[changed][::-1].replace(END[::-1], "") + END  # other words, and another size
    write_files(tmp_path, texts)
    read = interrupt(100)
    assert count(paths, fast, tmp_path / "unfinished") == reference_counts("".join(texts))
    assert len(read) == 5


def test_a_file_of_the_same_size_that_is_newer_starts_over(
    tmp_path: Path, texts: list[str], interrupt: Interrupt
) -> None:
    paths = write_files(tmp_path, texts)
    assert_interrupted(paths, False, tmp_path / "unfinished", interrupt, 3)
    os.utime(paths[0], (1, 1))
    read = interrupt(100)
    count(paths, False, tmp_path / "unfinished")
    assert len(read) == 5


@pytest.mark.parametrize(
    ("special_tokens", "pattern", "fast"), [(["<|pad|>"], "gpt2", False), ([END], "gpt4", False), ([END], "gpt2", True)]
)
def test_other_arguments_start_over(
    tmp_path: Path, texts: list[str], interrupt: Interrupt, special_tokens: list[str], pattern: str, fast: bool
) -> None:
    paths = write_files(tmp_path, texts)
    assert_interrupted(paths, False, tmp_path / "unfinished", interrupt, 3)
    read = interrupt(100)
    count_files(paths, special_tokens, pattern, fast=fast, num_threads=1, unfinished=tmp_path / "unfinished")
    assert len(read) == 5


def truncated_record() -> bytes:
    file = io.BytesIO()
    np.savez(file, counter=np.zeros(9, np.uint8))
    return file.getvalue()[:-40]


@both_paths
@pytest.mark.parametrize("record", [b"", b"damaged", b"PK", truncated_record()])
def test_a_damaged_record_starts_over(
    tmp_path: Path, texts: list[str], interrupt: Interrupt, fast: bool, record: bytes
) -> None:
    paths = write_files(tmp_path, texts)
    assert_interrupted(paths, fast, tmp_path / "unfinished", interrupt, 3)
    (path,) = (tmp_path / "unfinished").iterdir()
    path.write_bytes(record)
    read = interrupt(100)
    assert count(paths, fast, tmp_path / "unfinished") == reference_counts("".join(texts))
    assert len(read) == 5


@both_paths
@pytest.mark.parametrize("size", [1000, -200, -10])
def test_a_record_with_a_damaged_part_starts_over(
    tmp_path: Path, texts: list[str], interrupt: Interrupt, fast: bool, size: int
) -> None:
    paths = write_files(tmp_path, texts)
    assert_interrupted(paths, fast, tmp_path / "unfinished", interrupt, 3)
    (path,) = (tmp_path / "unfinished").iterdir()
    data = bytearray(path.read_bytes())
    data[size] ^= 0xFF
    path.write_bytes(data)
    interrupt(100)
    assert count(paths, fast, tmp_path / "unfinished") == reference_counts("".join(texts))


@both_paths
def test_the_error_gives_the_file_and_offset_of_a_byte_that_is_not_utf8(tmp_path: Path, fast: bool) -> None:
    paths = write_files(tmp_path, [f"one{END}", f"two{END}", f"three{END}"])
    paths[1].write_bytes(f"two\udcff{END}".encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"train-00001\.txt: not UTF-8 at byte 3; convert the file to UTF-8"):
        count(paths, fast)


@both_paths
def test_the_error_names_a_missing_file(tmp_path: Path, fast: bool) -> None:
    paths = write_files(tmp_path, [f"one{END}", f"two{END}"])
    paths[1].unlink()
    with pytest.raises(UserError, match=r"train-00001\.txt: cannot be read \(No such file or directory\)"):
        count(paths, fast)
