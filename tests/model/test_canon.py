import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lm.model.cache import KeyValueCache
from lm.model.canon import CanonLayer
from lm.model.transformer import TransformerLM
from lm.training.batches import document_starts


def random_layer(d_model: int) -> CanonLayer:
    torch.manual_seed(0)
    layer = CanonLayer(d_model, place=0)
    nn.init.normal_(layer.weight)
    return layer


def canon_model(small) -> TransformerLM:
    torch.manual_seed(0)
    model = TransformerLM(dataclasses.replace(small, canon=True), vocab_size=61)
    for name, weight in model.named_parameters():
        if "canon" in name:
            nn.init.normal_(weight, std=0.5)
    return model


def test_by_hand():
    layer = CanonLayer(1, place=0)
    layer.weight.data = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    h = torch.tensor([[2.0], [0.0], [0.0], [0.0], [0.0], [1.0]])
    # Each input is doubled in its own place, and comes back 10, 100 and 1000 times in the next three.
    assert layer(h).flatten().tolist() == [4, 20, 200, 2000, 0, 2]


def test_it_equals_torchs_convolution_with_its_gradients():
    layer = random_layer(8)
    convolution = nn.Conv1d(8, 8, kernel_size=4, groups=8, padding=3, bias=False)
    convolution.weight.data = layer.weight.detach().flip(0).T[:, None].clone()  # torch's last weight is the newest's
    ours, theirs = (torch.randn(3, 10, 8, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in "ab")
    y = layer(ours)
    expected = theirs + convolution(theirs.mT)[..., :10].mT
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(layer.weight.grad, convolution.weight.grad[:, 0].T.flip(0), rtol=1e-4, atol=1e-4)


def test_a_new_layer_is_the_identity_and_learns():
    layer, h = CanonLayer(8, place=0), torch.randn(5, 8)
    assert layer(h).equal(h)
    layer(h).square().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.all()


@given(length=st.integers(1, 12), changed=st.integers(0, 11))
def test_a_position_reaches_itself_and_the_next_three(length, changed):
    changed %= length
    layer, h = random_layer(4), torch.zeros(length, 4)
    other = h.index_fill(0, torch.tensor([changed]), 1.0)
    differs = (layer(h) != layer(other)).all(-1)
    assert differs.tolist() == [changed <= t <= changed + 3 for t in range(length)]


@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=16))
def test_a_document_in_a_window_is_read_as_if_alone(ids):
    layer, token_ids = random_layer(4), torch.tensor([ids])
    h = torch.randn(1, len(ids), 4, generator=torch.Generator().manual_seed(2))
    starts = document_starts(token_ids, 0)
    together = layer(h, starts)
    for start in starts.unique().tolist():
        document = starts[0] == start
        torch.testing.assert_close(together[0, document], layer(h[0, document]))


def test_it_computes_in_the_dtype_of_its_input():
    h = torch.randn(2, 5, 8)
    layer = random_layer(8)
    y = layer(h.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(h), rtol=0.05, atol=0.05)


def test_a_model_begins_as_the_one_without(small):
    models = []
    for canon in (False, True):
        torch.manual_seed(0)
        models.append(TransformerLM(dataclasses.replace(small, canon=canon), vocab_size=61))
    ids = torch.randint(61, (2, 16))
    assert torch.equal(models[0](ids), models[1](ids))


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_a_block_has_one_in_front_of_each_sublayer(small, norm_position):
    model = TransformerLM(dataclasses.replace(small, canon=True, norm_position=norm_position), vocab_size=61)
    block, x = model.layers[0], torch.randn(2, 16, 32)
    for layer in (block.canon_a, block.canon_c):
        nn.init.normal_(layer.weight)
    if norm_position == "pre":
        x1 = x + block.attn(block.canon_a(block.ln1(x)))
        expected = x1 + block.ffn(block.canon_c(block.ln2(x1)))
    else:
        x1 = block.ln1(x + block.attn(block.canon_a(x)))
        expected = block.ln2(x1 + block.ffn(block.canon_c(x1)))
    torch.testing.assert_close(block(x), expected)


def test_a_document_in_a_window_has_the_logits_of_the_document_alone(small):
    model = canon_model(dataclasses.replace(small, position="none"))
    ids = torch.tensor([[7, 9, 0, 5, 6, 3, 0, 8]])
    logits = model(ids, document_starts=document_starts(ids, 0))
    for first, last in ((0, 2), (2, 6), (6, 8)):
        torch.testing.assert_close(logits[:, first:last], model(ids[:, first:last]), rtol=1e-4, atol=1e-5)


def test_recomputed_activations_give_the_same_gradients(small):
    gradients = []
    for checkpoint_activations in (False, True):
        model = canon_model(small)
        model.checkpoint_activations = checkpoint_activations
        model(torch.arange(16)[None]).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


@torch.no_grad()
def test_prompts_of_different_lengths_are_continued_from_their_last_tokens(small):
    model = canon_model(small)
    texts = [[7], [1, 2], [3, 4, 5], [1, 2, 3, 4, 5, 6]]
    cache = KeyValueCache(model.config, 5, 16, torch.float32, torch.device("cpu"))
    cache.canon_inputs.fill_(torch.nan)  # what older texts have left must have no effect
    prompts = torch.tensor([text + [0] * (6 - len(text)) for text in texts])
    lengths = torch.tensor([len(text) for text in texts])
    model(prompts, cache=cache.prompts(torch.arange(4), lengths))
    for new in (8, 9, 10, 11):
        logits = model(torch.full((4, 1), new), cache=cache.next_tokens(lengths, num_columns=16))
        texts, lengths = [[*text, new] for text in texts], lengths + 1
        expected = torch.stack([model(torch.tensor(text))[-1] for text in texts])
        torch.testing.assert_close(logits[:, 0], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_text_can_begin_without_a_prompt(small):
    model = canon_model(small)
    cache = KeyValueCache(model.config, 1, 16, torch.float32, torch.device("cpu"))
    model(torch.tensor([[9, 8, 7, 6]]), cache=cache.prompts(torch.tensor([0]), torch.tensor([4])))  # an older text
    for position, token in enumerate(text := [1, 2, 3, 4, 5]):
        view = cache.next_tokens(torch.tensor([position]), num_columns=16)
        logits = model(torch.tensor([[token]]), cache=view)
        expected = model(torch.tensor(text[: position + 1]))[-1]
        torch.testing.assert_close(logits[0, 0], expected, rtol=1e-4, atol=1e-5)
