import math

import pytest
import torch

from lm.model.positions import RotaryEmbedding


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_rope_by_hand():
    rope = RotaryEmbedding(theta=100.0, d_head=4, context_length=8)
    x = torch.tensor([[1.0, 0.0, 0.0, 1.0]]).expand(3, 4)
    y = rope(x)
    for position in range(3):  # pair 0 turns by the position, pair 1 by a tenth of it: 100^(-2/4)
        a, b = position, position / 10
        torch.testing.assert_close(y[position], torch.tensor([math.cos(a), math.sin(a), -math.sin(b), math.cos(b)]))


def test_rope_turns_pairs_of_neighbours_as_complex_numbers():
    rope, x = RotaryEmbedding(theta=500.0, d_head=12, context_length=40), torch.randn(2, 3, 40, 12)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (6, 2)))
    angles = torch.arange(40.0).double()[:, None] * 500.0 ** (-torch.arange(0, 12, 2).double() / 12)
    expected = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    torch.testing.assert_close(rope(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_rope_keeps_the_type_of_what_it_turns():
    rope, x = RotaryEmbedding(theta=500.0, d_head=8, context_length=16), torch.randn(4, 16, 8)
    assert rope(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(rope(x.bfloat16()).float(), rope(x), rtol=2**-6, atol=2**-6)


def test_rope_scores_depend_on_distances_only():
    rope = RotaryEmbedding(theta=10000.0, d_head=16, context_length=64)
    q, k = torch.randn(16), torch.randn(16)

    def score(at_q, at_k):
        return rope(q[None], torch.tensor([at_q])) @ rope(k[None], torch.tensor([at_k])).T

    torch.testing.assert_close(score(20, 13), score(50, 43), rtol=1e-4, atol=1e-5)


def test_rope_positions_default_to_counting_and_can_be_given_for_each_row():
    rope = RotaryEmbedding(theta=10000.0, d_head=8, context_length=32)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(rope(x), rope(x, torch.arange(5)))
    torch.testing.assert_close(rope(x), rope(x, torch.arange(5).expand(2, 5)))
    shifted = rope(x, torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]]))
    torch.testing.assert_close(shifted[1], rope(x[1], torch.arange(7, 12)))
