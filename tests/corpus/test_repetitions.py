import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.corpus import repetitions as module
from lm.corpus.blocks import to_blocks
from lm.corpus.repetitions import RepetitionCounter, ValDocuments
from lm.errors import UserError


def block(documents):
    """Some documents as one block."""
    return next(to_blocks(documents, lambda document: "train"))


def count(documents, key="train_files"):
    counter = RepetitionCounter(key)
    for document in documents:
        counter.count(block([document]).hashes)
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
    hashes = np.arange(50_000, dtype=np.uint64)
    tracemalloc.start()
    try:
        for begin in range(0, len(hashes), 100):
            counter.count(hashes[begin : begin + 100])
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_a_counter_continues_from_what_another_one_remembers(capsys):
    first = RepetitionCounter("train_files")
    first.count(block(["a", "b", "a"]).hashes)
    second = RepetitionCounter("train_files", (first.documents, first.repeated), first.to_array())
    second.count(block(["b", "c"]).hashes)
    second.report()
    assert capsys.readouterr().err == "data.train_files: 2 of 5 documents repeat earlier ones; they are kept\n"


def compare(val, train):
    """Compare the documents of two splits, after the known ones went through an array."""
    remembered = ValDocuments()
    if val:
        remembered.remember(block(val).hashes)
    documents = ValDocuments(remembered.to_array())
    for document in train:
        documents.compare(block([document]))
    documents.refuse_repetitions()


def test_documents_of_val_in_train_are_counted():
    message = r"^data\.val_files: 3 of 4 documents are also in data\.train_files, such as ' b'; remove them from one of"
    with pytest.raises(UserError, match=message):
        compare(["a", "b\n", "b", "c"], ["d", " b", "e", "c", "b"])


@given(st.lists(st.integers(0, 30)), st.lists(st.integers(0, 30)))
def test_only_repetitions_are_refused(val, train):
    val, train = list(map(str, val)), list(map(str, train))
    repeated = sum(document in train for document in val)
    if repeated:
        with pytest.raises(UserError, match=rf"^data\.val_files: {repeated} of {len(val)} documents"):
            compare(val, train)
    else:
        compare(val, train)
