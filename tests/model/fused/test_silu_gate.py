import pytest
import torch
from torch import nn

from lm.model.feed_forward import SwiGLU
from lm.model.fused.silu_gate import silu_gate


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_the_gate_is_silu_of_one_input_times_the_other():
    a, b = torch.randn(2, 3, 5)
    torch.testing.assert_close(silu_gate(a, b), nn.functional.silu(a) * b)


def test_the_gate_keeps_its_two_inputs():
    a, b, kept = torch.randn(64, requires_grad=True), torch.randn(64, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        silu_gate(a, b)
    assert {tensor.data_ptr() for tensor in kept} == {a.data_ptr(), b.data_ptr()}


def test_the_gradients_of_swiglu_equal_differences():
    def swiglu(x, *weights):
        return torch.func.functional_call(ffn, dict(zip(("w1.weight", "w2.weight", "w3.weight"), weights)), x)

    ffn = SwiGLU(3, 5).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(swiglu, (x, *ffn.parameters()))
