import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lm.training.loss
from lm.training.loss import cross_entropy, linear_cross_entropy

_BFLOAT16_ROUNDING = 2**-8  # the largest relative error: 8 bits of mantissa


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_the_loss_of_equal_logits_is_the_logarithm_of_their_number():
    assert cross_entropy(torch.zeros(7, 50), torch.arange(7)).item() == pytest.approx(math.log(50))


@pytest.mark.parametrize("leading", [(5,), (2, 3), (2, 3, 4)])
def test_equals_torchs_in_value_and_gradient(leading):
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
    logits, targets = torch.randn(64, 1000).bfloat16(), torch.randint(1000, (64,))
    loss = cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits.float(), targets))


def inputs(*leading: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of width 6, a head for 11 tokens, and targets."""
    hidden = torch.randn(*leading, 6, dtype=dtype, requires_grad=True)
    weight = torch.randn(11, 6, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(11, leading)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """PyTorch's loss of all logits at once."""
    return nn.functional.cross_entropy((hidden @ weight.T).reshape(-1, len(weight)), targets.flatten())


def assert_equal_with_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, rtol: float = 1e-12, atol: float = 1e-13
) -> None:
    ours, truth = linear_cross_entropy(hidden, weight, targets), plain(hidden, weight, targets)
    torch.testing.assert_close(ours, truth, rtol=rtol, atol=atol)
    # The loss is scaled, so that the gradient that it receives is not 1.
    gradients = [torch.autograd.grad(-2.5 * loss, (hidden, weight)) for loss in (ours, truth)]
    torch.testing.assert_close(*gradients, rtol=rtol, atol=atol)


@pytest.mark.parametrize("leading", [(), (1,), (7,), (2, 3), (2, 3, 4)])
def test_linear_cross_entropy_is_exact(leading):
    assert_equal_with_gradients(*inputs(*leading))


@pytest.mark.parametrize("chunk_logits", [1000, 77, 40, 33, 11, 1])  # 1 chunk, 1, 2, 3, 7, and 77 for the 7 tokens
def test_linear_cross_entropy_does_not_depend_on_its_chunks(monkeypatch, chunk_logits):
    monkeypatch.setitem(lm.training.loss.CHUNK_LOGITS, "cpu", chunk_logits)
    assert_equal_with_gradients(*inputs(7))
    assert_equal_with_gradients(*inputs(1))


def test_linear_cross_entropy_of_float32_is_as_exact(monkeypatch):
    monkeypatch.setitem(lm.training.loss.CHUNK_LOGITS, "cpu", 100)
    assert_equal_with_gradients(*inputs(5, 9, dtype=torch.float32), rtol=1e-5, atol=1e-6)


def test_linear_cross_entropy_does_not_overflow():
    hidden, weight, targets = inputs(7)
    assert_equal_with_gradients(*(x.detach().mul(100).requires_grad_() for x in (hidden, weight)), targets, rtol=1e-9)


def test_a_second_backward_pass_is_an_error():
    loss = linear_cross_entropy(*inputs(7))
    (2 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_linear_cross_entropy_without_gradients_has_the_same_value(monkeypatch):
    monkeypatch.setitem(lm.training.loss.CHUNK_LOGITS, "cpu", 20)
    hidden, weight, targets = inputs(7)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(hidden, weight, targets).detach(), rtol=1e-12, atol=0)


def test_linear_cross_entropy_under_autocast_rounds_products_only(monkeypatch):
    monkeypatch.setitem(lm.training.loss.CHUNK_LOGITS, "cpu", 100)
    hidden, weight, targets = inputs(60, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
    assert loss.dtype == torch.float32
    gradients = torch.autograd.grad(loss, (hidden, weight))
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    rounded = [x.detach().bfloat16().double().requires_grad_() for x in (hidden, weight)]
    logits = rounded[0] @ rounded[1].T
    truth = plain(*rounded, targets)
    # The logits are rounded once, which changes each loss at most by the errors of the target's and the largest logit.
    logit_error = _BFLOAT16_ROUNDING * logits.abs().max().item()
    assert abs(loss.item() - truth.item()) <= 2 * logit_error * 1.1
    # exp turns that into a relative error; then the softmax, the other factor and the product are rounded.
    for ours, expected in zip(gradients, torch.autograd.grad(plain(*exact, targets), exact), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - expected).norm() <= (2 * logit_error + 3 * _BFLOAT16_ROUNDING) * expected.norm()


class LargestFloat32(TorchDispatchMode):
    """Records the size of the largest float32 result of any operation."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float32:
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_linear_cross_entropy_never_holds_all_logits_in_float32(monkeypatch, precision):
    monkeypatch.setitem(lm.training.loss.CHUNK_LOGITS, "cpu", 10_000)
    hidden, weight = torch.randn(1000, 4, requires_grad=True), torch.randn(500, 4, requires_grad=True)
    targets = torch.randint(500, (1000,))
    largest = {}
    for loss in (plain, linear_cross_entropy):
        with LargestFloat32() as seen, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss(hidden, weight, targets).backward()
        largest[loss] = seen.numel
    assert largest[plain] == 1000 * 500
    assert largest[linear_cross_entropy] <= 10_000
