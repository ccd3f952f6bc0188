import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.corpus import blocks as module
from lm.corpus.blocks import to_blocks


def test_two_splits_by_hand():
    train, val = to_blocks(["a", "é", "bc"], lambda text: "val" if text == "é" else "train")
    assert (train.split, train.text.tobytes(), train.ends.tolist()) == (
        "train",
        b"a<|endoftext|>bc<|endoftext|>",
        [14, 29],
    )
    assert (val.split, val.text.tobytes(), val.ends.tolist()) == ("val", b"\xc3\xa9<|endoftext|>", [15])
    assert [train.document(0), train.document(1), val.document(0)] == ["a", "bc", "é"]


@pytest.mark.parametrize("size", [1, 30, 1000])
@given(documents=st.lists(st.text(min_size=1, max_size=9)), count=st.integers(0, 9))
def test_blocks_hold_the_documents_in_their_order(size, documents, count):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_BYTES", size)
        blocks = list(to_blocks(documents, lambda text: None))
    assert [block.document(index) for block in blocks for index in range(len(block))] == documents
    for block in blocks:
        first, rest = block.before(min(count, len(block))), block.after(min(count, len(block)))
        assert len(first) + len(rest) == len(block)
        assert np.array_equal(np.concatenate([first.text, rest.text]), block.text)
        assert np.array_equal(np.concatenate([first.hashes, rest.hashes]), block.hashes)
        assert [rest.document(index) for index in range(len(rest))] == [
            block.document(len(first) + index) for index in range(len(rest))
        ]


def test_hashes_ignore_the_white_space_around_a_document():
    (block,) = to_blocks(["a", " a\n", "b"], lambda text: None)
    assert block.hashes[0] == block.hashes[1] != block.hashes[2]
