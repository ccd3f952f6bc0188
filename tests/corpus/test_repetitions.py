import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.corpus import repetitions as module
from lm.corpus.files import open_file
from lm.corpus.repetitions import RepetitionCounter, drop_copies, refuse_repetitions
from lm.errors import UserError


def test_one_file_by_many_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / "b.txt").write_text("Two.")
    (tmp_path / "symlink.txt").symlink_to("a.txt")
    (tmp_path / "hard-link.txt").hardlink_to("a.txt")
    (tmp_path / "copy\n.txt").write_text("One.")
    names = ["a.txt", "./a.txt", str(tmp_path / "a.txt"), "symlink.txt", "hard-link.txt", "b.txt", "copy\n.txt"]
    kept = drop_copies([open_file(name, tmp_path) for name in names], "train_files")
    assert [file.name for file in kept] == ["a.txt", "b.txt"]
    assert capsys.readouterr().err.splitlines() == [
        f"data.train_files: {name} has the same content as 'a.txt'; it is used once"
        for name in ["'./a.txt'", repr(names[2]), "'symlink.txt'", "'hard-link.txt'", r"'copy\n.txt'"]
    ]


def test_two_urls_of_one_file(loopback, tmp_path):
    loopback.files["/a.txt"] = b"One."
    urls = [f"{loopback.endpoint}/a.txt", f"{loopback.endpoint}/a.txt?x=1", "HTTP" + loopback.endpoint[4:] + "/a.txt"]
    kept = drop_copies([open_file(url, tmp_path) for url in urls], "train_files")
    assert [file.name for file in kept] == urls[:1]


def count(documents, key="train_files"):
    counter = RepetitionCounter(key)
    assert list(counter.count(documents)) == documents
    counter.report()


@pytest.mark.parametrize("documents", ["", "ab", "aab", "abcabcabc", "aaaaa"])
def test_repetitions_are_counted(documents, capsys):
    count(list(documents))
    repeated = len(documents) - len(set(documents))
    line = f"data.train_files: {repeated} of {len(documents)} documents repeat earlier ones; they are kept\n"
    assert capsys.readouterr().err == line * (repeated > 0)


def test_repetitions_of_more_documents_than_are_remembered(monkeypatch, capsys):
    monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
    count(["a", "b", "c", " c\n", "a\n", "d"], "val_files")
    assert capsys.readouterr().err == ("data.val_files: at least 1 of 6 documents repeat earlier ones; they are kept\n")


def test_memory_of_repetitions_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_REMEMBERED", 1000)
    counter = RepetitionCounter("train_files")
    tracemalloc.start()
    try:
        assert sum(1 for _ in counter.count(map(str, range(50_000)))) == 50_000
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def read(val, train):
    """Read both splits, `val` first, as the stage does."""
    val, train = refuse_repetitions(val, train)
    return list(val), list(train)


def test_documents_of_val_in_train_are_counted():
    val = ["a", "b\n", "b", "c"]
    message = r"^data\.val_files: 3 of 4 documents are also in data\.train_files, such as ' b'; remove them from one of"
    with pytest.raises(UserError, match=message):
        read(val, ["d", " b", "e", "c", "b"])


@given(st.lists(st.integers(0, 30)), st.lists(st.integers(0, 30)))
def test_only_repetitions_are_refused(val, train):
    val, train = list(map(str, val)), list(map(str, train))
    repeated = sum(document in train for document in val)
    if repeated:
        with pytest.raises(UserError, match=rf"^data\.val_files: {repeated} of {len(val)} documents"):
            read(val, train)
    else:
        assert read(val, train) == (val, train)


def test_documents_after_a_limit_are_not_compared():
    val, train = refuse_repetitions(["a", "b"], ["c", "d", "b", "a"])
    assert next(val) == "a"
    assert list(itertools.islice(train, 3)) == ["c", "d", "b"]


def test_memory_does_not_grow_with_the_length_of_train():
    val, train = refuse_repetitions(map(str, range(1000)), (f"{number} train" for number in range(100_000)))
    assert sum(1 for _ in val) == 1000
    tracemalloc.start()
    try:
        assert sum(1 for _ in train) == 100_000
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()
