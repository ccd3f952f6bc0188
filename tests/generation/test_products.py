"""The kernels of products, and functions that only kernels call, which numba compiles here."""

import numpy as np
import pytest
import torch
from numba import njit

from lm.generation.kernels import elementwise, library, tiles
from lm.generation.kernels.layout import INT8
from lm.generation.panels import pack, pack_int8
from lm.generation.q8_0 import quantize
from lm.generation.quantized import QuantizedLinear

GENERATOR = torch.Generator().manual_seed(1)


@pytest.mark.parametrize("num_rows", [1, 2, 4, 7, 16, 23])
@pytest.mark.parametrize(("d_in", "d_out"), [(32, 16), (64, 40), (100, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_pytorch(dtype, d_in, d_out, num_rows):
    weight = torch.randn(d_out, d_in, generator=GENERATOR).to(dtype)
    x = torch.zeros(num_rows, (d_in + 31) // 32 * 32)
    x[:, :d_in] = torch.randn(num_rows, d_in, generator=GENERATOR)
    panels = pack(weight)
    out = torch.full((num_rows, 16 * len(panels)), torch.nan)
    kernels = library.load()
    multiply = kernels.multiply_float32 if dtype == torch.float32 else kernels.multiply_bfloat16
    weights = panels.data_ptr(), panels.shape[1], len(panels), x.shape[1] // 32
    multiply(*weights, x.data_ptr(), 4 * x.shape[1], num_rows, out.data_ptr(), 4 * out.shape[1])
    torch.testing.assert_close(out[:, :d_out], x[:, :d_in] @ weight.float().T, atol=1e-4, rtol=1e-5)
    assert not out[:, d_out:].any()


def quantized_product(x: np.ndarray, weight: torch.Tensor) -> np.ndarray:
    """x Wᵀ with both in blocks of eight bits, from the definition: sums of integers, times the two scales."""
    scales, numbers = quantize(weight)
    blocks = np.pad(x, ((0, 0), (0, -x.shape[1] % 32))).reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(-1, keepdims=True)
    steps = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    rounded = np.rint(blocks * steps).astype(np.int64)
    sums = np.einsum("rbi,obi->rob", rounded, numbers.numpy().astype(np.int64))
    return (sums * scales.numpy().astype(np.float64) * (largest / 127)[:, None, :, 0]).sum(-1)


@pytest.mark.parametrize("num_rows", [1, 5, 16, 18])
@pytest.mark.parametrize(("d_in", "d_out"), [(32, 16), (344, 128), (100, 17)])
def test_int8_products_are_those_of_the_blocks(d_in, d_out, num_rows):
    weight = torch.randn(d_out, d_in, generator=GENERATOR)
    x = torch.randn(num_rows, d_in, generator=GENERATOR)
    x[0, :16] = 0
    out = QuantizedLinear(d_in, d_out, pack_int8(weight))(x)
    np.testing.assert_allclose(out.numpy(), quantized_product(x.numpy(), weight), atol=2e-4, rtol=1e-5)
    exact = x @ weight.T
    assert (out - exact).std() < 0.02 * exact.std()


def test_a_block_of_zeros_adds_nothing():
    weight, x = torch.randn(16, 64, generator=GENERATOR), torch.zeros(1, 64)
    weight[:, :32] = 0
    assert not QuantizedLinear(64, 16, pack_int8(weight))(x).any()
    x[0, 32:] = 1
    out = QuantizedLinear(64, 16, pack_int8(weight))(x)
    np.testing.assert_allclose(out.numpy(), quantized_product(x.numpy(), weight), rtol=1e-5)


def test_the_extreme_bytes_do_not_overflow():
    weight, x = torch.full((16, 32), -1.0), torch.full((1, 32), 1.0)
    out = QuantizedLinear(32, 16, pack_int8(weight))(x)
    torch.testing.assert_close(out, torch.full((1, 16), -32.0), rtol=1e-3, atol=0)


def test_processors_without_the_instruction_for_bytes_get_the_same_numbers(monkeypatch):
    weight, x = torch.randn(16, 64, generator=GENERATOR), torch.randn(2, 64, generator=GENERATOR)
    panels, quantized, out = pack_int8(weight), torch.empty(2, 80, dtype=torch.uint8), torch.empty(2, 2, 16)
    from lm.generation.kernels.products import quantize as quantize_inputs

    for has_vnni in (tiles.HAS_VNNI, False):
        monkeypatch.setattr(tiles, "HAS_VNNI", has_vnni)
        tile = tiles.make_tile(INT8, 2)

        @njit
        def call(panels, x, quantized, out, tile=tile):
            quantize_inputs(x, 256, 2, 2, quantized, 80)
            tile(panels, 2, quantized, 80, out, 64)

        call(panels.data_ptr(), x.data_ptr(), quantized.data_ptr(), out[int(has_vnni)].data_ptr())
    expected = quantized_product(x.numpy(), weight)
    np.testing.assert_allclose(out[0].numpy(), expected, atol=1e-4, rtol=1e-5)
    assert not tiles._FEATURES.get("avx512vnni") or torch.equal(out[0], out[1])


@njit
def call_exp(x):
    return elementwise.exp(x)


def test_exp_is_that_of_numpy_within_two_units_in_the_last_place():
    x = np.linspace(-86, 87, 10_001, dtype=np.float32)
    got = np.array([call_exp(number) for number in x], np.float32)
    np.testing.assert_allclose(got, np.exp(x.astype(np.float64)), rtol=4e-6)
    assert call_exp(np.float32(-1e4)) == call_exp(np.float32(-87)) > 0
