import math

import pytest
import torch
from torch import nn

from lm.model.feed_forward import FEED_FORWARDS, FeedForwardLayer, ReLUSquared, SiLU, SwiGLU, silu


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_silu_equals_torchs():
    x = torch.linspace(-30, 30, 101)
    torch.testing.assert_close(silu(x), nn.functional.silu(x))


def test_swiglu_by_hand():
    ffn = SwiGLU(1, 2)
    ffn.w1.weight.data = torch.tensor([[1.0], [-1.0]])
    ffn.w3.weight.data = torch.tensor([[2.0], [3.0]])
    ffn.w2.weight.data = torch.tensor([[1.0, 1.0]])
    sigmoid = 1 / (1 + math.exp(-1))
    # x = 1: silu(1)·2 + silu(-1)·3
    assert ffn(torch.ones(1)).item() == pytest.approx(2 * sigmoid - 3 * (1 - sigmoid))


def test_silu_layer_is_its_equation():
    ffn, x = SiLU(8, 12), torch.randn(3, 8)
    linear = nn.functional.linear
    torch.testing.assert_close(ffn(x), linear(nn.functional.silu(linear(x, ffn.w1.weight)), ffn.w2.weight))


def test_relu_squared_by_hand():
    ffn = ReLUSquared(1, 2)  # a hidden layer of width 3
    ffn.w1.weight.data = torch.tensor([[1.0], [-1.0], [2.0]])
    ffn.w2.weight.data = torch.tensor([[3.0, 5.0, 1.0]])
    # x = 2: 3·2² + 0 + 4²; x = -1: 5·1²
    assert ffn(torch.tensor([[2.0], [-1.0]])).flatten().tolist() == [28, 5]


def test_relu_squared_layer_is_its_equation():
    ffn, x = ReLUSquared(8, 12), torch.randn(3, 8)
    linear = nn.functional.linear
    torch.testing.assert_close(ffn(x), linear(nn.functional.relu(linear(x, ffn.w1.weight)) ** 2, ffn.w2.weight))


@pytest.mark.parametrize("name", FEED_FORWARDS)
def test_each_variant_has_as_many_parameters_as_swiglu(name):
    assert FEED_FORWARDS[name].num_parameters(24, 64) == sum(p.numel() for p in SwiGLU(24, 64).parameters())


@pytest.mark.parametrize("name", FEED_FORWARDS)
def test_each_variant_reports_its_parameters_and_flops(name):
    layer = FEED_FORWARDS[name]
    count = sum(p.numel() for p in layer(24, 64).parameters())
    assert layer.num_parameters(24, 64) == count
    assert layer.flops_per_token(24, 64) == 2 * count


def test_a_variant_without_its_cost_cannot_be_built():
    class ReLU(FeedForwardLayer):
        def __init__(self, d_model: int, d_ff: int) -> None:
            super().__init__(d_model, d_ff)

    with pytest.raises(TypeError, match="num_parameters"):
        ReLU(24, 64)
