import pytest
import torch
from torch import nn

from lm.model.norms import RMSNorm


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


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
