import dataclasses
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm.corpus.grammar import Grammar
from lm.corpus.grammar_reader import read
from lm.corpus.stories import stories
from lm.evaluation import kinds, looking_back
from lm.evaluation.kinds import ReadStory, token_kinds
from lm.evaluation.looking_back import attention_weights, head_weights, later_names, later_pairs, look_back
from lm.model.attention import MultiHeadSelfAttention
from lm.model.transformer import TransformerLM

GRAMMAR = Grammar(
    """
words hero, friend | he
    Ann, Joanna | she
    Bob | he
rule story
    A boy named {hero} met {friend}. Then {friend} sat. Then {hero} ran. {He} told {friend}.
""",
    "small",
)
TEXT = "A boy named Ann met Joanna. Then Joanna sat. Then Ann ran. She told Joanna."

CHANGES = [
    {},
    {"num_kv_heads": 2},
    {"qk_norm": True},
    {"position": "learned"},
    {"position": "none", "norm": "none"},
    {"norm_position": "post", "canon": True},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_the_weights_give_the_output_of_the_layer(small, changes):
    torch.manual_seed(1)
    model = TransformerLM(dataclasses.replace(small, **changes), vocab_size=20).eval()
    ids = torch.randint(20, (12,))
    seen = []
    attentions = [module for module in model.modules() if isinstance(module, MultiHeadSelfAttention)]
    for attention in attentions:
        attention.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0][0], output[0])))
    with torch.no_grad():
        model(torch.cat([torch.tensor([3]), ids[:-1]])[None])
        assert [module for module, _, _ in seen] == attentions
        found = attention_weights(model, ids, range(12), end_of_text_id=3)
        assert found.shape == (2, 4, 12, 11)  # no token is predicted from itself, so the last one is never an input
        for layer, (attention, x, output) in enumerate(seen[:2]):
            weights = head_weights(attention, x, torch.arange(12))
            values = attention.v_proj(x).unflatten(-1, (-1, attention.d_head)).transpose(0, 1)
            values = values.repeat_interleave(4 // len(values), dim=0)
            heads = (weights @ values).transpose(0, 1).flatten(-2)
            torch.testing.assert_close(attention.output_proj(heads), output)
            torch.testing.assert_close(found[layer], weights[:, :, 1:])


def test_some_rows_are_those_of_all_rows(small):
    torch.manual_seed(1)
    model = TransformerLM(small, vocab_size=20)
    ids = torch.randint(20, (16,))
    everything = attention_weights(model, ids, range(16), 0)
    torch.testing.assert_close(attention_weights(model, ids, [5, 15, 0], 0), everything[:, :, [5, 15, 0]])
    torch.testing.assert_close(everything.triu(0), torch.zeros_like(everything))  # what is predicted is not seen


def test_later_names_and_their_earlier_mentions():
    tokens = [b"A boy named", b" Ann", b" met", b" Jo", b"anna", b".", b" Then", b" Joanna", b" sat.", b" Then"]
    tokens += [b" Ann", b" ran.", b" She", b" told", b" Jo", b"anna", b".", b"<|endoftext|>"]
    reading = read(GRAMMAR, TEXT)
    story = ReadStory(TEXT, reading, token_kinds(TEXT, reading, tokens))
    # "anna" within Joanna is no Ann, and the last Joanna was mentioned twice.
    assert later_names(story, tokens) == [(7, 8, [3, 4]), (10, 11, [1]), (14, 16, [3, 4, 7])]


@given(st.lists(st.integers(0, 3), max_size=30))
def test_later_pairs_are_the_repeated_pairs(ids):
    found = later_pairs(ids)
    assert [one.start for one in found] == np.flatnonzero(kinds.repeated_pairs(ids)).tolist()
    for start, stop, earlier in found:
        assert stop == start + 1
        assert list(earlier) == [i for i in range(1, start) if ids[i - 1 : i + 1] == ids[start - 1 : start + 1]]


@pytest.fixture
def even(small):
    """A model whose queries are zero, so that every head spreads its attention evenly."""
    torch.manual_seed(0)
    model = TransformerLM(dataclasses.replace(small, context_length=2000), vocab_size=257)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name:
                parameter.zero_()
    return model


def test_heads_that_spread_their_attention_evenly(even, tokenizer):
    documents = [np.array([1, 2, 3, 1, 2, 256]), np.array([7, 7, 7, 256])]
    found = look_back(even, tokenizer, documents, are_stories=False)
    assert found.repetitions == [[(4, 5, (1,))], [(2, 3, (1,))]]
    assert found.even_share == pytest.approx((1 / 5 + 1 / 3) / 2)
    assert found.share == pytest.approx(np.full((2, 4), found.even_share))


def test_names_in_stories(even, tokenizer):
    text = next(iter(stories(5))).text
    document = np.array([*text.encode(), 256])
    found = look_back(even, tokenizer, [document], are_stories=True)
    assert found.num_repetitions > 2
    assert found.share == pytest.approx(np.full((2, 4), found.even_share))
    for start, stop, earlier in found.repetitions[0]:
        name = text[start:stop].strip()
        assert name.istitle() and text[:start].count(name) * len(name) == len(earlier)


def test_a_head_that_was_made_to_look_back(small, tokenizer):
    """One layer and one head, whose queries for token i look for token i + 1: the next one of 0 1 2 3."""
    config = dataclasses.replace(
        small, d_model=8, num_layers=1, num_heads=1, num_kv_heads=1, norm="none", position="none"
    )
    model = TransformerLM(config, vocab_size=257)
    with torch.no_grad():
        model.token_embeddings.weight.zero_()
        model.token_embeddings.weight[:8] = torch.eye(8)
        model.layers[0].attn.k_proj.weight.copy_(torch.eye(8))
        model.layers[0].attn.q_proj.weight.copy_(100 * torch.eye(8).roll(1, dims=0))
    found = look_back(model, tokenizer, [np.array([0, 1, 2, 3, 0, 1, 2, 256])], are_stories=False)
    assert found.repetitions == [[(5, 6, (1,)), (6, 7, (2,))]]
    assert found.share == pytest.approx(np.ones((1, 1)))


def test_only_as_much_is_read_as_time_allows(even, tokenizer, monkeypatch):
    documents = [np.array([1, 2] * 100 + [256])] * 30
    monkeypatch.setattr(looking_back, "_MAX_FLOPS", 0)
    found = look_back(even, tokenizer, documents, are_stories=False)
    assert [len(ids) for ids in found.documents] == [201, 55]
    assert max(one.stop for one in found.repetitions[1]) == 55


def test_without_repetitions_the_share_is_not_a_number(even, tokenizer):
    found = look_back(even, tokenizer, [np.array([1, 2, 3])], are_stories=False)
    assert found.num_repetitions == 0
    assert np.isnan(found.share).all() and np.isnan(found.even_share)


def test_the_model_is_as_before(even, tokenizer):
    documents = [np.array([*story.text.encode(), 256]) for story in islice(stories(5), 1)]
    before = even(torch.arange(9)[None])
    look_back(even, tokenizer, documents, are_stories=True)
    assert not any(module._forward_pre_hooks for module in even.modules())
    torch.testing.assert_close(even(torch.arange(9)[None]), before)
