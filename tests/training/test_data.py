import os

import numpy as np
import pytest
import torch

from lm.errors import UserError
from lm.training.batches import batch
from lm.training.data import TokenFile
from lm.training.evaluation import windows

TOKENS = np.arange(1000, dtype="<u2")


@pytest.fixture
def path(tmp_path):
    TOKENS.tofile(tmp_path / "train.bin")
    return tmp_path / "train.bin"


def test_slices_are_those_of_the_array(path):
    tokens = TokenFile(path, np.memmap(path, TOKENS.dtype, mode="r"))
    assert len(tokens) == 1000
    for index in (slice(0, 5), slice(990, 1000), slice(-7, None), slice(-7, -6), slice(3, 3), slice(995, 2000)):
        assert tokens[index].tolist() == TOKENS[index].tolist() and tokens[index].dtype == TOKENS.dtype


def test_batches_and_windows_are_those_of_the_array(path):
    tokens = TokenFile(path, np.memmap(path, TOKENS.dtype, mode="r"))
    for step in (0, 7, 100):
        batches = [batch(source, range(0, 980, 16), step, 4, 16, 1) for source in (tokens, TOKENS)]
        for ours, theirs in zip(*batches, strict=True):
            assert torch.equal(ours, theirs)
    for ours, theirs in zip(windows(tokens, 7, 16, 5), windows(TOKENS, 7, 16, 5), strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_a_file_that_becomes_shorter_is_named(path):
    tokens = TokenFile(path, np.memmap(path, TOKENS.dtype, mode="r"))
    os.truncate(path, 1000)
    with pytest.raises(UserError) as error:
        tokens[490:510]
    assert str(error.value) == (
        f"{path}: has become shorter during training; make it again with: dvc repro encode_memmap"
    )


def test_a_file_that_is_replaced_is_still_read(path):
    tokens = TokenFile(path, np.memmap(path, TOKENS.dtype, mode="r"))
    path.unlink()
    path.write_bytes(b"")
    assert tokens[10:20].tolist() == TOKENS[10:20].tolist()
