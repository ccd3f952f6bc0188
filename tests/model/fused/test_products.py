import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lm.model.fused import products
from lm.model.fused.products import prefers_float32, prefers_onednn, product_dtype
from lm.model.linear import matmul

_read_processor = products._processor.__wrapped__  # behind its cache


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[False, True], ids=["torch", "onednn"])
def library(request, monkeypatch) -> None:
    """Both ways on any processor, as long as PyTorch was built with both."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch was built without oneDNN")
    monkeypatch.setattr(products, "prefers_onednn", lambda: request.param)


@pytest.fixture(params=[False, True], ids=["bfloat16", "float32"])
def precision(request, monkeypatch) -> None:
    """Both ways to multiply bfloat16 matrices, on any processor."""
    monkeypatch.setattr(products, "prefers_float32", lambda: request.param)


@pytest.mark.parametrize("shape", [(8,), (1, 8), (3, 8), (2, 3, 8), (2, 1, 3, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_torchs_linear_with_gradients(library, precision, shape, dtype):
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


def test_under_autocast_the_product_is_in_its_type_and_the_gradients_in_that_of_the_weights(library, precision):
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = matmul(x, weight), nn.functional.linear(x, weight)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(y.sum(), (x, weight)) for y in (ours, theirs)]
    assert all(gradient.dtype == torch.float32 for gradient in gradients[0])
    torch.testing.assert_close(*gradients, rtol=2**-7, atol=2**-7)


def test_a_product_in_float32_is_rounded_once(monkeypatch):
    monkeypatch.setattr(products, "prefers_float32", lambda: True)
    x, weight = torch.randn(3, 400).bfloat16().requires_grad_(), torch.randn(5, 400, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours = matmul(x, weight)
    truth = x.double() @ weight.double().T
    assert ((ours - truth).abs() <= 2**-8 * truth.abs() + 1e-5).all()
    gradient = torch.randn_like(ours)
    x_gradient, weight_gradient = torch.autograd.grad(ours, (x, weight), gradient)
    torch.testing.assert_close(x_gradient.double(), gradient.double() @ weight.double(), rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(weight_gradient.double(), gradient.double().T @ x.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_slow", [False, True])
def test_products_are_in_autocasts_dtype_unless_float32_is_faster(monkeypatch, is_slow):
    monkeypatch.setattr(products, "prefers_float32", lambda: is_slow)
    x = torch.randn(3)
    assert product_dtype(x) == torch.float32
    assert product_dtype(x.double()) == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert product_dtype(x) == (torch.float32 if is_slow else torch.bfloat16)


def on_a_machine(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None, processor: str = "", preferred: Any = prefers_onednn
) -> bool:
    """What is preferred where /proc/cpuinfo holds this text, or cannot be read."""

    def read_text(path: Path) -> str:
        assert path == Path("/proc/cpuinfo")
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: processor)
    monkeypatch.setattr(products, "_processor", _read_processor)
    return preferred()


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


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "expected"),
    [
        ("x86_64", "vendor_id\t: GenuineIntel\nflags\t: avx2 avx512f avx512_bf16\n", True),
        ("x86_64", "vendor_id\t: GenuineIntel\nflags\t: avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n", False),
        ("x86_64", "vendor_id\t: AuthenticAMD\nflags\t: avx2 avx512f avx512_bf16\n", False),
        ("x86_64", "vendor_id\t: AuthenticAMD\nflags\t: avx2\n", True),
        ("aarch64", "Features\t: fp asimd bf16\n", False),
    ],
)
def test_float32_is_preferred_where_bfloat16_is_slow(monkeypatch, machine, cpuinfo, expected):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert on_a_machine(monkeypatch, cpuinfo, preferred=prefers_float32) == expected
