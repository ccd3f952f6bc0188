import math

import pytest
import torch
from torch import nn

from lm.model.layers import Embedding, LayerNorm, Linear, RMSNorm, SiLU, SwiGLU, silu


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


def test_rmsnorm_by_hand():
    norm = RMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 10.0])
    # mean(3², 4²) = 12.5
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), torch.tensor([3.0, 40.0]) / math.sqrt(12.5))


@pytest.mark.parametrize("shape", [(16,), (5, 16), (4, 3, 16)])
@pytest.mark.parametrize(("ours", "theirs"), [(RMSNorm, nn.RMSNorm), (LayerNorm, nn.LayerNorm)])
def test_norms_equal_torchs_with_gradients(ours, theirs, shape):
    ours, theirs = ours(16), theirs(16, eps=1e-5)
    for name, weight in ours.named_parameters():
        weight.data = torch.randn(16)
        theirs.get_parameter(name).data = weight.data.clone()
    x = torch.randn(shape, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    torch.testing.assert_close(ours(x), theirs(y))
    ours(x).square().sum().backward()
    theirs(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, theirs.get_parameter(name).grad, rtol=1e-4, atol=1e-5)


def test_rmsnorm_keeps_one_tensor_of_the_size_of_its_input():
    norm, x, kept = RMSNorm(16), torch.randn(64, 16, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        norm(x)
    assert [tensor.data_ptr() for tensor in kept if tensor.numel() >= x.numel()] == [x.data_ptr()]


def test_rmsnorm_under_autocast_gives_its_type_and_gradients_of_float32():
    norm, exact = RMSNorm(16), nn.RMSNorm(16, eps=1e-5)
    norm.weight.data = torch.randn(16)
    exact.weight.data = norm.weight.data.clone()
    x = torch.randn(4, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    truth = exact(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, truth.bfloat16())
    gradient = torch.randn(4, 16).bfloat16()
    ours = torch.autograd.grad(y, (x, norm.weight), gradient)
    assert all(g.dtype == torch.float32 for g in ours)
    torch.testing.assert_close(ours, torch.autograd.grad(truth, (x, exact.weight), gradient.float()))


def test_rmsnorm_of_bfloat16_has_gradients_of_its_inputs_types():
    norm, exact = RMSNorm(16), nn.RMSNorm(16, eps=1e-5)
    x = torch.randn(4, 16).bfloat16().requires_grad_()
    x32 = x.detach().float().requires_grad_()
    gradient = torch.randn(4, 16).bfloat16()
    ours = torch.autograd.grad(norm(x), (x, norm.weight), gradient)
    theirs = torch.autograd.grad(exact(x32), (x32, exact.weight), gradient.float())
    assert ours[0].dtype == torch.bfloat16 and ours[1].dtype == torch.float32
    torch.testing.assert_close(ours, (theirs[0].bfloat16(), theirs[1]))


@pytest.mark.parametrize("norm", [RMSNorm(256), LayerNorm(256)])
def test_norms_of_bfloat16_are_those_of_float32_rounded(norm):
    x = (100 + torch.randn(4, 256)).bfloat16()  # a sum of squares far beyond bfloat16's 8 bits
    y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, norm(x.float()).bfloat16())


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


def test_silu_layer_has_as_many_parameters_as_swiglu():
    assert sum(p.numel() for p in SiLU(24, 64).parameters()) == sum(p.numel() for p in SwiGLU(24, 64).parameters())


def test_the_gradients_of_swiglu_equal_differences():
    def swiglu(x, *weights):
        return torch.func.functional_call(ffn, dict(zip(("w1.weight", "w2.weight", "w3.weight"), weights)), x)

    ffn = SwiGLU(3, 5).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(swiglu, (x, *ffn.parameters()))
