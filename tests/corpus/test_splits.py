import hashlib
import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.corpus.splits import write_split
from lm.errors import UserError


def test_a_split_by_hand(tmp_path):
    path = tmp_path / "val.txt"
    entry = write_split(["Été.\n", "b"], path, 0, 0)
    data = b"\xc3\x89t\xc3\xa9.\n<|endoftext|>b<|endoftext|>"
    assert path.read_bytes() == data
    assert entry == {"bytes": 8, "documents": 2, "sha256": hashlib.sha256(data).hexdigest()}
    assert os.listdir(tmp_path) == ["val.txt"]


@given(st.lists(st.integers(1, 9), min_size=1), st.integers(0, 40), st.integers(0, 9))
def test_a_split_ends_with_the_document_that_reaches_a_limit(tmp_path_factory, sizes, max_bytes, max_documents):
    path = tmp_path_factory.getbasetemp() / "a.txt"
    entry = write_split(("x" * size for size in sizes), path, max_bytes, max_documents)
    runs = [sizes[:count] for count in range(1, len(sizes) + 1)]
    reached = (
        run for run in runs if (max_bytes and sum(run) >= max_bytes) or (max_documents and len(run) >= max_documents)
    )
    expected = next(reached, sizes)
    assert (entry["bytes"], entry["documents"]) == (sum(expected), len(expected))


def test_no_document_is_read_after_the_limit(tmp_path):
    numbers = itertools.count()
    write_split(map(str, numbers), tmp_path / "a.txt", 0, 3)
    assert next(numbers) == 3


def test_a_split_without_documents_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"val\.txt: the source has no documents for this split; .* data\.val_fraction"):
        write_split([], tmp_path / "val.txt", 0, 0)
    assert not os.listdir(tmp_path)
