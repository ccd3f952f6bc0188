import math

import pytest
import torch
from torch import nn

from lm.training.loss import cross_entropy


def test_equal_logits_cost_the_logarithm_of_their_number():
    assert cross_entropy(torch.zeros(7, 50), torch.arange(7)).item() == pytest.approx(math.log(50))


@pytest.mark.parametrize("leading", [(5,), (2, 3), (2, 3, 4)])
def test_equals_torchs_in_value_and_gradient(leading):
    torch.manual_seed(0)
    ours = torch.randn(*leading, 11, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    targets = torch.randint(11, leading)
    loss = cross_entropy(ours, targets)
    expected = nn.functional.cross_entropy(theirs.flatten(0, -2), targets.flatten())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    assert cross_entropy(logits, torch.tensor([0, 0])).item() == pytest.approx(5000)


def test_bfloat16_logits_are_summed_in_float32():
    torch.manual_seed(0)
    logits, targets = torch.randn(64, 1000).bfloat16(), torch.randint(1000, (64,))
    loss = cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits.float(), targets))
