import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm import shards
from lm.corpus.blocks import to_blocks
from lm.corpus.splits import SplitWriter


def blocks(documents):
    return list(to_blocks(documents, lambda document: "train"))


def test_a_split_by_hand(tmp_path):
    writer = SplitWriter(tmp_path, "val", 0, 0)
    assert [writer.add(block) for block in blocks(["Été.\n", "b"])] == [2]
    data = b"\xc3\x89t\xc3\xa9.\n<|endoftext|>b<|endoftext|>"
    assert writer.sync() == [{"bytes": 8, "documents": 2, "sha256": hashlib.sha256(data).hexdigest()}]
    writer.close()
    assert [path.read_bytes() for path in writer.paths] == [data]


@given(st.lists(st.integers(1, 9), min_size=1), st.integers(0, 40), st.integers(0, 9), st.integers(1, 4))
def test_a_split_ends_with_the_document_that_reaches_a_limit(
    tmp_path_factory, sizes, max_bytes, max_documents, num_blocks
):
    writer = SplitWriter(tmp_path_factory.getbasetemp(), "train", max_bytes, max_documents)
    documents = ["x" * size for size in sizes]
    for begin in range(0, len(documents), num_blocks):
        for block in blocks(documents[begin : begin + num_blocks]):
            writer.add(block)
    writer.close()
    runs = [sizes[:count] for count in range(1, len(sizes) + 1)]
    reached = (
        run for run in runs if (max_bytes and sum(run) >= max_bytes) or (max_documents and len(run) >= max_documents)
    )
    expected = next(reached, sizes)
    assert (writer.bytes, writer.documents) == (sum(expected), len(expected))
    text = writer.paths[0].read_text()
    assert text == "".join(f"{document}<|endoftext|>" for document in documents[: len(expected)])


@pytest.mark.parametrize("block_documents", [1, 3, 100])
def test_shards_end_with_the_document_that_reaches_their_size(tmp_path, monkeypatch, block_documents):
    monkeypatch.setattr(shards, "SHARD_BYTES", 10)
    documents = ["x" * size for size in [4, 5, 6, 12, 1, 9, 3]]
    writer = SplitWriter(tmp_path, "train", 0, 0)
    for begin in range(0, len(documents), block_documents):
        for block in blocks(documents[begin : begin + block_documents]):
            writer.add(block)
    writer.close()
    assert [path.name for path in writer.paths] == [f"train-0000{index}.txt" for index in range(4)]
    texts = [path.read_text().split("<|endoftext|>")[:-1] for path in writer.paths]
    assert texts == [documents[:3], documents[3:4], documents[4:6], documents[6:]]
    assert [(facts["bytes"], facts["documents"]) for facts in writer.shards] == [(15, 3), (12, 1), (10, 2), (3, 1)]


def test_a_writer_continues_after_what_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 10)
    documents = [f"{number}" * (number % 5 + 1) for number in range(30)]
    whole = SplitWriter(tmp_path, "val", 60, 0)
    for block in blocks(documents):
        whole.add(block)
    whole.close()

    first = SplitWriter(tmp_path, "train", 60, 0)
    first.add(*blocks(documents[:7]))
    known = [facts.copy() for facts in first.sync()]
    first.add(*blocks(documents[7:20]))  # lost
    first.close()
    second = SplitWriter(tmp_path, "train", 60, 0, known)
    second.add(*blocks(documents[7:]))
    second.close()
    assert second.shards == whole.shards and len(whole.shards) > 3
    assert [path.read_bytes() for path in second.paths] == [path.read_bytes() for path in whole.paths]
