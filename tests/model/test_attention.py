import math

import pytest
import torch
from torch import nn

from lm.model.attention import (
    MultiHeadSelfAttention,
    RotaryEmbedding,
    causal_attention,
    scaled_dot_product_attention,
    softmax,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_softmax_equals_torchs_also_where_exp_overflows():
    x = torch.randn(3, 4, 5) * 10
    torch.testing.assert_close(softmax(x, dim=1), x.softmax(1))
    torch.testing.assert_close(softmax(x + 1000, dim=-1), x.softmax(-1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_reference_attention_equals_torchs_with_a_mask(leading):
    q, k, v = torch.randn(*leading, 4, 8), torch.randn(*leading, 6, 8), torch.randn(*leading, 6, 8)
    mask = torch.rand(*leading, 4, 6) > 0.3
    mask[..., 0] = True
    theirs = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v, mask), theirs)


@pytest.mark.parametrize("d_head", [8, 32])
def test_both_backends_are_equal_with_gradients(d_head):
    q, k, v = (torch.randn(2, 3, 37, d_head, requires_grad=True) for _ in range(3))
    outputs = [causal_attention(q, k, v, backend) for backend in ("reference", "sdpa")]
    torch.testing.assert_close(*outputs)
    gradients = [torch.autograd.grad(output.square().sum(), (q, k, v)) for output in outputs]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_rope_by_hand():
    rope = RotaryEmbedding(theta=100.0, d_head=4, context_length=8)
    x = torch.tensor([[1.0, 0.0, 0.0, 1.0]]).expand(3, 4)
    y = rope(x)
    for position in range(3):  # pair 0 turns by the position, pair 1 by a tenth of it: 100^(-2/4)
        a, b = position, position / 10
        torch.testing.assert_close(y[position], torch.tensor([math.cos(a), math.sin(a), -math.sin(b), math.cos(b)]))


def test_rope_scores_depend_on_distances_only():
    rope = RotaryEmbedding(theta=10000.0, d_head=16, context_length=64)
    q, k = torch.randn(16), torch.randn(16)

    def score(at_q, at_k):
        return rope(q[None], torch.tensor([at_q])) @ rope(k[None], torch.tensor([at_k])).T

    torch.testing.assert_close(score(20, 13), score(50, 43), rtol=1e-4, atol=1e-5)


def test_rope_positions_default_to_counting_and_can_be_given_for_each_row():
    rope = RotaryEmbedding(theta=10000.0, d_head=8, context_length=32)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(rope(x), rope(x, torch.arange(5)))
    torch.testing.assert_close(rope(x), rope(x, torch.arange(5).expand(2, 5)))
    shifted = rope(x, torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]]))
    torch.testing.assert_close(shifted[1], rope(x[1], torch.arange(7, 12)))


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_multi_head_attention_equals_one_head_at_a_time(num_kv_heads):
    attention = MultiHeadSelfAttention(32, 4, num_kv_heads)
    x = torch.randn(2, 7, 32)
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    heads = []
    for head in range(4):
        group = head * num_kv_heads // 4
        q = x @ attention.q_proj.weight[8 * head : 8 * head + 8].T
        k = x @ attention.k_proj.weight[8 * group : 8 * group + 8].T
        v = x @ attention.v_proj.weight[8 * group : 8 * group + 8].T
        heads.append(scaled_dot_product_attention(q, k, v, mask))
    expected = torch.cat(heads, -1) @ attention.output_proj.weight.T
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_multi_head_attention_takes_any_leading_dimensions_and_positions(leading):
    attention = MultiHeadSelfAttention(16, 2, rope=RotaryEmbedding(10000.0, 8, 32))
    x = torch.randn(*leading, 6, 16)
    positions = torch.arange(6).expand(*leading, 6)
    torch.testing.assert_close(attention(x), attention(x, positions))
    torch.testing.assert_close(attention(x), attention(x, torch.arange(6)))


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_no_position_sees_what_comes_after_it(backend):
    attention = MultiHeadSelfAttention(16, 2, rope=RotaryEmbedding(10000.0, 8, 32), backend=backend)
    x = torch.randn(1, 9, 16)
    changed = x.clone()
    changed[:, 5:] = torch.randn(1, 4, 16)
    torch.testing.assert_close(attention(x)[:, :5], attention(changed)[:, :5])
    assert not torch.allclose(attention(x)[:, 5:], attention(changed)[:, 5:])
