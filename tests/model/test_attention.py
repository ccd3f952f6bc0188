import pytest
import torch
from torch import Tensor, nn

from lm.model.attention import (
    MultiHeadSelfAttention,
    attention_to_cache,
    causal_attention,
    scaled_dot_product_attention,
    softmax,
)
from lm.model.positions import RotaryEmbedding


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


BACKENDS = ["reference", "sdpa", "flash"]


def one_document_at_a_time(q: Tensor, k: Tensor, v: Tensor, documents: list[list[int]]) -> Tensor:
    """Causal attention by PyTorch, of each document of the given lengths alone."""
    sequences = []
    for sequence in zip(q, k, v, documents, strict=True):
        parts = zip(*(x.split(sequence[3], dim=-2) for x in sequence[:3]), strict=True)
        outputs = [nn.functional.scaled_dot_product_attention(*part, is_causal=True) for part in parts]
        sequences.append(torch.cat(outputs, dim=-2))
    return torch.stack(sequences)


DOCUMENTS = {
    "whole": [[37], [37]],
    "several": [[5, 1, 20, 11], [30, 7]],
    "of one token": [[1] * 37, [36, 1]],
}


@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("d_head", [8, 32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_documents_are_attended_to_one_at_a_time_with_gradients(backend, d_head, documents):
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, 3, 37, d_head, requires_grad=True) for _ in range(3))
    lengths = DOCUMENTS[documents]
    starts = [sum(row[:i]) for row in lengths for i, length in enumerate(row) for _ in range(length)]
    ours = causal_attention(q, k, v, backend, torch.tensor(starts).view(2, 37))
    truth = one_document_at_a_time(q, k, v, lengths)
    torch.testing.assert_close(ours, truth)
    gradient = torch.randn_like(truth)
    gradients = [torch.autograd.grad(output, (q, k, v), gradient) for output in (ours, truth)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    if documents == "whole":
        torch.testing.assert_close(causal_attention(q, k, v, backend), truth)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_grouped_heads_and_documents_go_together(backend, num_kv_heads):
    attention = MultiHeadSelfAttention(32, 4, num_kv_heads, rope=RotaryEmbedding(100.0, 8, 16), backend=backend)
    x = torch.randn(2, 12, 32)
    together = attention(x, document_starts=torch.tensor([[0] * 5 + [5] * 7]).expand(2, 12))
    # rope knows distances only: it does not matter that a document alone begins at position 0
    apart = torch.cat([attention(part) for part in x.split([5, 7], dim=1)], dim=1)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_position_sees_what_comes_after_it(backend):
    attention = MultiHeadSelfAttention(16, 2, rope=RotaryEmbedding(10000.0, 8, 32), backend=backend)
    x = torch.randn(1, 9, 16)
    changed = x.clone()
    changed[:, 5:] = torch.randn(1, 4, 16)
    torch.testing.assert_close(attention(x)[:, :5], attention(changed)[:, :5])
    assert not torch.allclose(attention(x)[:, 5:], attention(changed)[:, 5:])


def test_qk_norm_normalises_every_query_and_key_before_they_are_turned():
    attention = MultiHeadSelfAttention(16, 2, rope=RotaryEmbedding(100.0, 8, 32), qk_norm=True)
    attention.q_norm.weight.data, attention.k_norm.weight.data = torch.rand(8) + 0.5, torch.rand(8) + 0.5
    x = torch.randn(2, 6, 16)

    def heads(projection: nn.Module, norm: nn.Module | None) -> Tensor:
        y = nn.functional.linear(x, projection.weight).unflatten(-1, (2, 8)).transpose(1, 2)
        return y if norm is None else attention.rope(nn.functional.rms_norm(y, (8,), norm.weight, eps=1e-5))

    q, k = heads(attention.q_proj, attention.q_norm), heads(attention.k_proj, attention.k_norm)
    y = nn.functional.scaled_dot_product_attention(q, k, heads(attention.v_proj, None), is_causal=True)
    expected = nn.functional.linear(y.transpose(1, 2).flatten(-2), attention.output_proj.weight)
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_attention_to_a_cache_equals_attention_of_each_head_to_the_columns_it_sees(num_kv_heads):
    q, k, v = torch.randn(3, 4, 1, 8), torch.randn(3, num_kv_heads, 6, 8), torch.randn(3, num_kv_heads, 6, 8)
    lengths = [1, 4, 6]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    output = attention_to_cache(q, k, v, mask[:, None, None])
    for row, length in enumerate(lengths):
        for head in range(4):
            group = head * num_kv_heads // 4
            expected = nn.functional.scaled_dot_product_attention(
                q[row, head], k[row, group, :length], v[row, group, :length]
            )
            torch.testing.assert_close(output[row, head], expected)
