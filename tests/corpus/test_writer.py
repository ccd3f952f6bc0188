"""Writing a corpus, and continuing after an interruption."""

import dataclasses
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm import config, shards
from lm.corpus import blocks, sources
from lm.corpus import writer as module
from lm.corpus.config import END_OF_TEXT, DataConfig
from lm.corpus.sources import FilesPiece, Piece, Reading, StoriesPiece, open_corpus
from lm.corpus.writer import write_corpus
from lm.errors import UserError

DATA = dataclasses.replace(
    config.load(Path(__file__).parents[2] / "params.yaml").data,
    source="files",
    train_files=["?.txt"],
    train_bytes=0,
    val_bytes=0,
)
# Files with ten documents each, a copy of one of them, a file without separators, and one that repeats documents.
TEXTS = {f"{name}.txt": END_OF_TEXT.join(f"Document {name}{number}." for number in range(10)) for name in "abcd"}
TEXTS |= {"e.txt": TEXTS["b.txt"], "f.txt": "A book."}
TEXTS |= {"g.txt": END_OF_TEXT.join(["Document a1.", "New.", "New.", "Document b2."])}
VAL_TEXTS = {f"val{number}.txt": END_OF_TEXT.join([f"Val {number}.", "Again.", "Last."]) for number in range(3)}

SETTINGS: dict[str, dict[str, Any]] = {
    "held out": {"val_fraction": 0.3},
    "val_files": {"val_files": ["val*.txt"]},
    "limits": {"val_files": ["val*.txt"], "val_bytes": 25, "train_documents": 33},
    "limits of held out": {"val_fraction": 0.3, "val_bytes": 70, "train_documents": 17},
}


class Interrupted(Exception):
    pass


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are in the current folder, each is a piece, and each document is a block."""
    monkeypatch.chdir(tmp_path)
    for name, text in {**TEXTS, **VAL_TEXTS}.items():
        Path(name).write_text(text)
    monkeypatch.setattr(shards, "SHARD_BYTES", 50)
    monkeypatch.setattr(sources, "SHARD_BYTES", 1)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    monkeypatch.setattr("lm.progress.ProgressRecord.is_due", True)


Interrupt = Callable[[int], list[str]]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """Return a function that makes reading fail after n results; it returns the names of the pieces that are read."""

    def interrupt_after(count: int) -> list[str]:
        names: list[str] = []
        results = itertools.count()

        def read_some(piece: Piece) -> Iterator[Reading]:
            names.append(piece.files[0][0] if isinstance(piece, FilesPiece) else type(piece).__name__)
            for result in sources.read(piece):
                if next(results) == count:
                    raise Interrupted
                yield result

        monkeypatch.setattr(module, "read", read_some)
        return names

    return interrupt_after


def write(data: DataConfig, unfinished: str = "unfinished") -> dict[str, Any]:
    """Write the corpus to a new folder `raw`, as the stage does after DVC has deleted it."""
    shutil.rmtree("raw", ignore_errors=True)
    Path("raw").mkdir()
    return write_corpus(data, open_corpus(data, Path("cache"), "none"), Path("raw"), Path(unfinished), "none")


def contents() -> dict[str, str]:
    return {path.name: path.read_text() for path in Path("raw").iterdir()}


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_corpus_is_the_same_wherever_it_was_interrupted(
    name: str, step: int, interrupt: Interrupt, capsys: pytest.CaptureFixture[str]
) -> None:
    data = dataclasses.replace(DATA, **SETTINGS[name])
    all_names = interrupt(10_000)
    manifest, files, report = write(data), contents(), capsys.readouterr().err
    assert len(files) > 5 and "val" in "".join(files)
    for count in itertools.count(step=step):
        first = interrupt(count)
        try:
            write(data)
        except Interrupted:
            pass
        else:
            assert count > 30
            break
        assert Path("unfinished").is_dir() and not contents()
        reported = capsys.readouterr().err
        rest = interrupt(10_000)
        assert write(data) == manifest
        assert contents() == files
        # Only the piece that was interrupted is read again, and perhaps the one that filled the split before it.
        assert rest == all_names[-len(rest) :] and len(first) + len(rest) <= len(all_names) + 1 + ("limits" in name)
        assert not Path("unfinished").exists()
        reported += capsys.readouterr().err
        assert set(reported.splitlines()) == set(report.splitlines()), count


def test_a_run_that_is_interrupted_again_and_again_advances(interrupt: Interrupt) -> None:
    data = dataclasses.replace(DATA, **SETTINGS["held out"])
    manifest, files = write(data), contents()
    for _ in "abcde":  # Each run reads a file, which has 12 results with `Opened` and `PieceEnd`, and opens the next.
        interrupt(13)
        with pytest.raises(Interrupted):
            write(data)
    names = interrupt(10_000)
    assert (write(data), contents()) == (manifest, files)
    assert names == ["f.txt", "g.txt"]


def test_the_splits_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    data = dataclasses.replace(DATA, train_files=["a.txt", "e.txt", "b.txt", "g.txt"], val_files=["f.txt"])
    manifest = write(data)
    documents = [*TEXTS["a.txt"].split(END_OF_TEXT), *TEXTS["b.txt"].split(END_OF_TEXT)]
    documents += ["Document a1.", "New.", "New.", "Document b2."]
    names = sorted(path.name for path in Path("raw").glob("train-*.txt"))
    assert "".join(Path("raw", name).read_text() for name in names) == "".join(f"{d}{END_OF_TEXT}" for d in documents)
    train = manifest["splits"]["train"]
    assert len(train["shards"]) == len(names) > 3
    assert (train["documents"], train["bytes"]) == (24, sum(map(len, documents)))
    assert contents()["val.txt"] == f"A book.{END_OF_TEXT}"
    assert [entry["path"] for entry in manifest["provenance"]] == ["a.txt", "e.txt", "g.txt", "f.txt"]
    assert capsys.readouterr().err.splitlines() == [
        "f.txt: data.separator '<|endoftext|>' does not occur in the text, so the file is one document, as are others "
        "without it",
        "data.train_files: 'b.txt' has the same content as 'e.txt'; it is used once",
        "data.train_files: 3 of 24 documents repeat earlier ones; they are kept",
    ]


def test_stories_that_were_interrupted_start_over(interrupt: Interrupt) -> None:
    data = dataclasses.replace(DATA, source="stories", train_bytes=9_000, val_bytes=2_000)
    assert isinstance(open_corpus(data, Path("cache"), "none").parts[0].pieces[0], StoriesPiece)
    manifest, files = write(data), contents()
    interrupt(5)
    with pytest.raises(Interrupted):
        write(data)
    interrupt(10_000)
    assert (write(data), contents()) == (manifest, files)


@pytest.mark.parametrize("name", ["a.txt", "g.txt"])
def test_a_changed_file_starts_over(interrupt: Interrupt, name: str) -> None:
    data = dataclasses.replace(DATA, **SETTINGS["held out"])
    interrupt(30)
    with pytest.raises(Interrupted):
        write(data)
    Path(name).write_text("Other.<|endoftext|>Text.")
    names = interrupt(10_000)
    manifest, files = write(data), contents()
    assert names == [f"{letter}.txt" for letter in "abcdefg"]
    assert (write(data, "another folder"), contents()) == (manifest, files)
    assert "Other." in "".join(files.values())


def test_other_parameters_start_over(interrupt: Interrupt) -> None:
    data = dataclasses.replace(DATA, **SETTINGS["held out"])
    interrupt(30)
    with pytest.raises(Interrupted):
        write(dataclasses.replace(data, seed=data.seed + 1))
    interrupt(10_000)
    manifest, files = write(data), contents()
    assert (write(data, "another folder"), contents()) == (manifest, files)


def truncated_record() -> bytes:
    file = io.BytesIO()
    np.savez(file, state=np.zeros(9, np.uint8))
    return file.getvalue()[:-40]


@pytest.mark.parametrize("record", [b"", b"damaged", b"PK", truncated_record()])
def test_a_damaged_record_starts_over(interrupt: Interrupt, record: bytes) -> None:
    data = dataclasses.replace(DATA, **SETTINGS["held out"])
    manifest, files = write(data), contents()
    interrupt(30)
    with pytest.raises(Interrupted):
        write(data)
    Path("unfinished/progress.npz").write_bytes(record)
    names = interrupt(10_000)
    assert (write(data), contents()) == (manifest, files)
    assert len(names) == len(TEXTS)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_moving_the_files_can_be_interrupted(monkeypatch: pytest.MonkeyPatch, interrupt: Interrupt, count: int) -> None:
    data = dataclasses.replace(DATA, **SETTINGS["val_files"])
    manifest, files = write(data), contents()

    def move(source: Path, target: Path) -> None:
        if len(contents()) == count:
            raise Interrupted
        source.rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "move", move)
        with pytest.raises(Interrupted):
            write(data)
    left = contents()
    assert left.items() <= files.items() and len(left) == count
    assert (write(data), contents()) == (manifest, files)


@pytest.mark.parametrize("count", range(2, 30, 3))
def test_documents_of_val_are_found_after_an_interruption(interrupt: Interrupt, count: int) -> None:
    data = dataclasses.replace(DATA, val_files=["v.json*"])
    repeated = ["Document a1.", "Document a2.", "Document g.", "New."]
    Path("v.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in repeated))
    interrupt(count)
    with pytest.raises(Interrupted):
        write(data)
    interrupt(10_000)
    with pytest.raises(UserError, match=r"data\.val_files: 3 of 4 documents are also in data\.train_files"):
        write(data)
    assert not contents()


def test_an_unreadable_file_among_others_is_named_and_leaves_no_corpus(interrupt: Interrupt) -> None:
    data = dataclasses.replace(DATA, **SETTINGS["held out"])
    text = Path("d.txt").read_bytes()
    Path("d.txt").write_bytes(text[:-1] + b"\xff")
    with pytest.raises(UserError, match=r"^d\.txt: not UTF-8 text at byte "):
        write(data)
    assert not contents()
    Path("d.txt").write_bytes(text)
    names = interrupt(10_000)
    write(data)
    assert len(names) == len(TEXTS)  # the file has changed


def test_the_text_is_on_disk_before_it_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, move = os.fsync, shutil.move
    monkeypatch.setattr(os, "fsync", lambda file: (events.append("fsync"), fsync(file))[1])
    monkeypatch.setattr(shutil, "move", lambda *paths: (events.append("move"), move(*paths))[1])
    monkeypatch.setattr(shards, "SHARD_BYTES", 10**9)
    monkeypatch.setattr("lm.progress.ProgressRecord.is_due", False)
    write(dataclasses.replace(DATA, **SETTINGS["val_files"]))
    assert events == ["fsync", "fsync", "move", "move"]
