import platform
from pathlib import Path

import pytest
import torch
from torch import nn

from lm.model.fused import onednn
from lm.model.fused.onednn import prefers_onednn
from lm.model.linear import matmul


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[False, True], ids=["torch", "onednn"])
def library(request, monkeypatch) -> None:
    """Both ways on any processor, as long as PyTorch was built with both."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch was built without oneDNN")
    monkeypatch.setattr(onednn, "prefers_onednn", lambda: request.param)


@pytest.mark.parametrize("shape", [(8,), (1, 8), (3, 8), (2, 3, 8), (2, 1, 3, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_torchs_linear_with_gradients(library, shape, dtype):
    x, weight = torch.randn(shape, dtype=dtype, requires_grad=True), torch.randn(5, 8, dtype=dtype, requires_grad=True)
    ours, theirs = matmul(x, weight), nn.functional.linear(x, weight)
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn_like(theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (x, weight), gradient), torch.autograd.grad(theirs, (x, weight), gradient)
    )


def test_takes_views_that_are_not_contiguous(library):
    x, weight = torch.randn(8, 3, 2, requires_grad=True), torch.randn(8, 5, requires_grad=True)
    ours, theirs = matmul(x.transpose(0, 2), weight.T), nn.functional.linear(x.transpose(0, 2), weight.T)
    torch.testing.assert_close(ours, theirs)
    # A sum's gradient is one number seen everywhere: a view without strides.
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), (x, weight)), torch.autograd.grad(theirs.sum(), (x, weight))
    )


@pytest.mark.parametrize("learns", [(True, False), (False, True)])
def test_what_does_not_learn_has_no_gradient(library, learns):
    x, weight = torch.randn(3, 8, requires_grad=learns[0]), torch.randn(5, 8, requires_grad=learns[1])
    matmul(x, weight).square().sum().backward()
    assert (x.grad is not None, weight.grad is not None) == learns


def test_under_autocast_the_product_is_in_its_type_and_the_gradients_in_that_of_the_weights(library):
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = matmul(x, weight), nn.functional.linear(x, weight)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(y.sum(), (x, weight)) for y in (ours, theirs)]
    assert all(gradient.dtype == torch.float32 for gradient in gradients[0])
    torch.testing.assert_close(*gradients, rtol=2**-7, atol=2**-7)


def on_a_machine(monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None, processor: str = "") -> bool:
    """What is preferred where /proc/cpuinfo holds this text, or cannot be read."""

    def read_text(path: Path) -> str:
        assert path == Path("/proc/cpuinfo")
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: processor)
    return prefers_onednn.__wrapped__()  # behind its cache


def test_onednn_is_preferred_on_amds_processors(monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert on_a_machine(monkeypatch, "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n")
    assert not on_a_machine(monkeypatch, "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon\n")
    assert on_a_machine(monkeypatch, None, "AMD64 Family 25 Model 33 Stepping 2, AuthenticAMD")
    assert not on_a_machine(monkeypatch, None, "arm")


@pytest.mark.parametrize("missing", ["mkl", "mkldnn"])
def test_onednn_is_not_preferred_where_there_is_no_choice(monkeypatch, missing):
    for library in ("mkl", "mkldnn"):
        monkeypatch.setattr(getattr(torch.backends, library), "is_available", lambda there=library != missing: there)
    assert not on_a_machine(monkeypatch, "vendor_id\t: AuthenticAMD\n")
