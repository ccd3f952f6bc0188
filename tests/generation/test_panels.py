import torch

from lm.generation.panels import pack, pack_int8, unpack_int8
from lm.generation.q8_0 import quantize


def matrix(rows: int, width: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1))


def test_float32_by_hand() -> None:
    weight = matrix(18, 33)
    panels = pack(weight).view(torch.float32).view(2, 64, 16)  # panel, input, output
    assert panels[0, 5, 3] == weight[3, 5]
    assert panels[1, 32, 1] == weight[17, 32]
    assert not panels[1, :, 2:].any() and not panels[:, 33:].any()


def test_bfloat16_by_hand() -> None:
    weight = matrix(18, 33).bfloat16()
    panels = pack(weight).view(torch.bfloat16).view(2, 32, 16, 2)  # panel, pair of inputs, output, input of the pair
    assert panels[0, 2, 3, 1] == weight[3, 5]
    assert panels[1, 16, 1, 0] == weight[17, 32]
    assert not panels[1, :, 2:].any() and not panels[:, 16, :, 1].any() and not panels[:, 17:].any()


def test_int8_by_hand() -> None:
    weight = matrix(18, 33)
    scales, numbers = quantize(weight)  # (18, 2), (18, 2, 32)
    panels = pack_int8(weight)
    assert panels.shape == (2, 1088)  # 17 lines of 64 bytes: two blocks of 512 + 32
    weights = panels[:, :1024].view(2, 2, 8, 16, 4)  # panel, block, four inputs, output, input of the four
    assert weights[0, 0, 1, 3, 2] == int(numbers[3, 0, 6]) + 128
    assert weights[1, 1, 0, 1, 0] == int(numbers[17, 1, 0]) + 128
    in_panels = panels[:, 1024:].view(torch.float16).view(2, 2, 16)  # panel, block, output
    assert in_panels[0, 0, 3] == scales[3, 0] and in_panels[1, 1, 1] == scales[17, 1]


def test_unpacking_returns_the_weights_of_q8_0() -> None:
    weight = matrix(50, 40)
    scales, numbers = quantize(weight)
    expected = (scales.float()[..., None] * numbers).flatten(1)[:, :40]
    rows = torch.tensor([[0, 49], [17, 3]])
    assert torch.equal(unpack_int8(pack_int8(weight), rows, 40), expected[rows])
