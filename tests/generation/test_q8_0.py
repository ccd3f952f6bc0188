import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from lm.errors import UserError
from lm.generation.q8_0 import LARGEST, gguf_bytes, quantize


def test_a_block_by_hand() -> None:
    weight = torch.zeros(1, 32)
    weight[0, :5] = torch.tensor([254.0, -127.0, 3.0, -1.0, 0.9])  # steps of 2
    scales, numbers = quantize(weight)
    assert (scales.dtype, scales.tolist()) == (torch.float16, [[2.0]])
    assert numbers[0, 0, :6].tolist() == [127, -64, 2, -1, 0, 0]  # halves away from zero


@given(st_numpy.arrays(np.float32, (3, 64), elements=st.floats(-1e4, 1e4, width=32)))
def test_the_bytes_are_those_of_the_package_gguf(weight: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        expected = gguf.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(gguf_bytes(torch.from_numpy(weight)).numpy(), expected)


def test_large_matrices_are_quantized_in_parts() -> None:
    weight = torch.randn(3000, 320, generator=torch.Generator().manual_seed(1))
    expected = gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(gguf_bytes(weight).numpy(), expected)


def test_a_row_that_ends_within_a_block_is_continued_with_zeros() -> None:
    weight = torch.randn(4, 40, generator=torch.Generator().manual_seed(1))
    padded = torch.cat((weight, torch.zeros(4, 24)), 1)
    for got, expected in zip(quantize(weight), quantize(padded)):
        assert torch.equal(got, expected)


def test_quantized_weights_stay_as_they_are() -> None:
    scales, numbers = quantize(torch.randn(8, 64, generator=torch.Generator().manual_seed(1)))
    again = quantize((scales.float()[..., None] * numbers).flatten(1))
    assert torch.equal(again[0], scales) and torch.equal(again[1], numbers)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2 * LARGEST])
def test_a_weight_that_does_not_fit_is_refused(value: float) -> None:
    weight = torch.zeros(2, 32)
    weight[1, 3] = value
    with pytest.raises(UserError, match="expected weights of at most 8319008 for q8_0, got"):
        quantize(weight)
