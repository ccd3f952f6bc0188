import math

import pytest
import torch
from torch import nn

from lm.model.norms import NORMS, LayerNorm, RMSNorm


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


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


@pytest.mark.parametrize("norm", [RMSNorm(256), LayerNorm(256)])
def test_norms_of_bfloat16_are_those_of_float32_rounded(norm):
    x = (100 + torch.randn(4, 256)).bfloat16()  # a sum of squares far beyond bfloat16's 8 bits
    y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, norm(x.float()).bfloat16())


@pytest.mark.parametrize("name", NORMS)
def test_each_norm_reports_its_parameters(name):
    assert sum(p.numel() for p in NORMS[name](24).parameters()) == NORMS[name].num_parameters(24)
