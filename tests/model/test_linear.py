import math

import pytest
import torch
from torch import nn

from lm.model.linear import Embedding, Linear


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (2, 1, 3, 8)])
def test_linear_equals_torchs_on_any_leading_dimensions(shape):
    ours, x = Linear(8, 5), torch.randn(shape)
    torch.testing.assert_close(ours(x), nn.functional.linear(x, ours.weight))


def test_initial_weights_have_the_stated_spread():
    weight = Linear(300, 500).weight
    std = math.sqrt(2 / 800)
    assert weight.std().item() == pytest.approx(std, rel=0.03)  # a cut at 3 sigma lowers it by 1.3%
    assert weight.abs().max() <= 3 * std
    assert Embedding(1000, 64).weight.std().item() == pytest.approx(1, rel=0.03)


def test_embedding_takes_rows():
    embedding = Embedding(10, 4)
    ids = torch.tensor([[1, 9], [0, 1]])
    torch.testing.assert_close(embedding(ids), nn.functional.embedding(ids, embedding.weight))
