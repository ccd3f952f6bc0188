import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lm.model.fused.flash_attention import flash_attention, tiled_backward, tiled_forward

_BFLOAT16_ROUNDING = 2**-8  # of a number, at most: 8 bits of mantissa


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, document_starts: Tensor | None = None) -> Tensor:
    """All the scores at once."""
    positions = torch.arange(q.shape[-2])
    hidden = positions > positions.unsqueeze(-1)
    if document_starts is not None:
        hidden = hidden | (positions < document_starts[:, None, :, None])
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


def inputs(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    # As the model makes them: a transposed view, whose rows are not next to each other in memory.
    batch, heads, length, d = shape
    return tuple(torch.randn(batch, length, heads, d, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3))


def starts_of(documents: list[int]) -> Tensor:
    """(T,), of the documents' lengths."""
    return torch.cat([torch.full((length,), sum(documents[:i])) for i, length in enumerate(documents)])


DOCUMENTS = {
    "one": None,
    "short": [starts_of([7] * 28 + [4]), starts_of([1] * 200)],
    "long": [starts_of([130, 70]), starts_of([64, 64, 72])],  # across tiles, and of whole tiles
}


@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("length", [1, 7, 64, 65, 200])
@pytest.mark.parametrize("d_head", [3, 16])
def test_equals_plain_attention_with_gradients(length, d_head, documents):
    q, k, v = inputs(2, 3, length, d_head)
    starts = DOCUMENTS[documents] and torch.stack(DOCUMENTS[documents])[:, :length]
    ours, truth = flash_attention(q, k, v, starts), plain_attention(q, k, v, starts)
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)
    gradient = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (q, k, v), gradient),
        torch.autograd.grad(truth, (q, k, v), gradient),
        rtol=1e-12,
        atol=1e-12,
    )


@settings(max_examples=30, deadline=None)
@given(documents=st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=6), min_size=1, max_size=3))
def test_equals_plain_attention_whatever_the_documents(documents):
    length = min(map(sum, documents))
    starts = torch.stack([starts_of(of_sequence)[:length] for of_sequence in documents])
    q, k, v = inputs(len(documents), 1, length, 4)
    ours, truth = flash_attention(q, k, v, starts), plain_attention(q, k, v, starts)
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), (q, k, v)),
        torch.autograd.grad(truth.square().sum(), (q, k, v)),
        rtol=1e-11,
        atol=1e-11,
    )


def test_by_hand():
    # Scores of sqrt(1) q k: the third query weighs keys by e^ln(1), e^ln(2), e^ln(5); within its own document 2 and 5.
    q = torch.ones(1, 1, 3, 1)
    k = torch.tensor([1.0, 2.0, 5.0]).log().view(1, 1, 3, 1)
    v = torch.tensor([8.0, 4.0, 16.0]).view(1, 1, 3, 1)
    whole = [8, (8 + 2 * 4) / 3, (8 + 2 * 4 + 5 * 16) / 8]
    torch.testing.assert_close(flash_attention(q, k, v).flatten(), torch.tensor(whole))
    split = [8, 4, (2 * 4 + 5 * 16) / 7]
    torch.testing.assert_close(flash_attention(q, k, v, torch.tensor([[0, 1, 1]])).flatten(), torch.tensor(split))


def test_gradients_equal_differences():
    q, k, v = inputs(1, 2, 67, 2)
    starts = starts_of([20, 47]).unsqueeze(0)
    assert torch.autograd.gradcheck(flash_attention, (q, k, v, starts), fast_mode=True)


def test_log_sum_exp_is_that_of_the_scores():
    q, k, v = inputs(2, 2, 130, 8)
    positions = torch.arange(130)
    scores = (q @ k.mT / math.sqrt(8)).masked_fill(positions > positions.unsqueeze(-1), -torch.inf)
    torch.testing.assert_close(tiled_forward(q, k, v, None)[1], scores.logsumexp(-1), rtol=1e-12, atol=1e-12)


def test_large_scores_do_not_overflow():
    q, k, v = inputs(1, 1, 150, 8, dtype=torch.float32)
    q, k = 100 * q, 100 * k  # scores of thousands, whose exp is infinite in float32
    expected = plain_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(flash_attention(q, k, v).double(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("documents", [None, [40, 160]])
def test_bfloat16_is_rounded_only_where_it_is_stored(documents):
    q, k, v = (x.detach().bfloat16().requires_grad_() for x in inputs(2, 2, 200, 16))
    starts = starts_of(documents).expand(2, 200) if documents else None
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    ours, truth = flash_attention(q, k, v, starts), plain_attention(*exact, starts)
    assert ours.dtype == torch.bfloat16
    assert ((ours - truth).abs() <= _BFLOAT16_ROUNDING * truth.abs() + 1e-5).all()

    gradient = torch.randn_like(ours)
    dq, dk, dv = torch.autograd.grad(ours, (q, k, v), gradient)
    true_dq, true_dk, true_dv = torch.autograd.grad(truth, exact, gradient.double())
    assert ((dv - true_dv).abs() <= _BFLOAT16_ROUNDING * true_dv.abs() + 1e-5).all()
    # They have a second error, as large: that of the rounded output, from which D = rowsum(dO O) is taken.
    assert (dq - true_dq).norm() <= 2 * _BFLOAT16_ROUNDING * true_dq.norm()
    assert (dk - true_dk).norm() <= 2 * _BFLOAT16_ROUNDING * true_dk.norm()


def test_a_document_does_not_depend_on_the_others():
    starts = starts_of([50, 90, 60]).unsqueeze(0)
    q, k, v = inputs(1, 2, 200, 8)
    middle = slice(50, 140)
    changed = [x.detach().clone() for x in (q, k, v)]
    for x in changed:
        x[..., middle, :] = torch.randn(90, 8)
    before, after = flash_attention(q, k, v, starts), flash_attention(*changed, starts)
    assert torch.equal(before[..., :50, :], after[..., :50, :])
    assert torch.equal(before[..., 140:, :], after[..., 140:, :])
    assert not torch.isclose(before[..., middle, :], after[..., middle, :]).all(-1).any()


def test_each_document_equals_a_sequence_of_its_own():
    lengths = [50, 90, 60]
    q, k, v = inputs(1, 2, 200, 8)
    together = flash_attention(q, k, v, starts_of(lengths).unsqueeze(0))
    apart = [flash_attention(*of) for of in zip(*(x.split(lengths, dim=-2) for x in (q, k, v)), strict=True)]
    torch.testing.assert_close(together, torch.cat(apart, dim=-2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("leading", [(), (2, 2)])
def test_takes_any_leading_dimensions(leading):
    q, k, v = (torch.randn(*leading, 3, 70, 8) for _ in range(3))
    starts = starts_of([30, 40]).expand(*leading, 70)
    ours = flash_attention(q, k, v, starts)
    flat = [x.reshape(-1, 3, 70, 8) for x in (q, k, v)]
    torch.testing.assert_close(ours, plain_attention(*flat, starts.reshape(-1, 70)).reshape(q.shape))


def test_autocast_rounds_nothing_and_mixed_types_become_that_of_the_values():
    q, k, v = inputs(1, 2, 100, 16, dtype=torch.float32)
    expected = flash_attention(q, k, v)
    gradients = torch.autograd.grad(expected.sum(), (q, k, v))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = flash_attention(q, k, v)
        assert torch.equal(output, expected)
        assert torch.autograd.grad(output.sum(), (q, k, v))[0].equal(gradients[0])
        mixed = flash_attention(q, k.bfloat16(), v.bfloat16())
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, flash_attention(q.bfloat16(), k.bfloat16(), v.bfloat16()))


def test_compiled_code_has_it_whole_in_its_graph():
    # aot_eager traces forward and backward as every compiler needs them, and calls no compiler.
    def project_and_attend(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> Tensor:
        return flash_attention(2 * q, k, v.sin(), starts).tanh()

    compiled = torch.compile(project_and_attend, backend="aot_eager", fullgraph=True)
    for starts in (None, starts_of([30, 70]).unsqueeze(0)):
        q, k, v = inputs(1, 2, 100, 8)
        ours, plain = compiled(q, k, v, starts), project_and_attend(q, k, v, starts)
        torch.testing.assert_close(ours, plain)
        torch.testing.assert_close(
            torch.autograd.grad(ours.sum(), (q, k, v)), torch.autograd.grad(plain.sum(), (q, k, v))
        )


def test_no_tensor_is_as_large_as_the_scores():
    class Sizes(TorchFunctionMode):
        largest = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.largest = max(self.largest, result.numel())
            return result

    q, k, v = (x.detach() for x in inputs(1, 1, 1000, 8))
    with Sizes() as sizes:
        o, log_sum_exp = tiled_forward(q, k, v, None)
        tiled_backward(o, q, k, v, o, log_sum_exp, None)
    assert sizes.largest == q.numel()
