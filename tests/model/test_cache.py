import dataclasses

import pytest
import torch

from lm.model.cache import KeyValueCache
from lm.model.config import ModelConfig
from lm.model.transformer import TransformerLM

CPU = torch.device("cpu")


@pytest.fixture
def config(small: ModelConfig) -> ModelConfig:
    return dataclasses.replace(small, num_kv_heads=2)


def test_the_cache_has_a_row_per_text_and_a_column_per_token(config):
    cache = KeyValueCache(config, 3, config.context_length, torch.bfloat16, CPU)
    assert cache.keys.shape == cache.values.shape == (2, 3, 2, 16, 8)  # layers, rows, key/value heads, columns, d_head
    assert cache.keys.dtype == torch.bfloat16 and not cache.keys.any()


@torch.no_grad()
@pytest.mark.parametrize("position", ["rope", "learned", "none"])
def test_reading_token_by_token_gives_the_logits_of_reading_at_once(config, position):
    torch.manual_seed(0)
    model = TransformerLM(dataclasses.replace(config, position=position), vocab_size=61)
    ids = torch.randint(61, (3, 16))
    expected = model(ids)
    cache = KeyValueCache(config, 4, config.context_length, torch.float32, CPU)
    prompts = model(ids[:, :5], cache=cache.prompts(torch.tensor([0, 1, 2]), torch.full((3,), 5)))
    torch.testing.assert_close(prompts, expected[:, :5])
    for at in range(5, 16):
        view = cache.next_tokens(torch.full((3,), at), num_columns=at + 1)
        torch.testing.assert_close(model(ids[:, at : at + 1], cache=view)[:, 0], expected[:, at], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_new_text_in_a_row_sees_nothing_of_the_old_one(config):
    torch.manual_seed(0)
    model = TransformerLM(config, vocab_size=61)
    old, new = torch.randint(61, (1, 12)), torch.randint(61, (1, 3))
    cache = KeyValueCache(config, 1, config.context_length, torch.float32, CPU)
    model(old, cache=cache.prompts(torch.tensor([0]), torch.tensor([12])))
    model(new[:, :2], cache=cache.prompts(torch.tensor([0]), torch.tensor([2])))
    logits = model(new[:, 2:], cache=cache.next_tokens(torch.tensor([2]), num_columns=12))
    torch.testing.assert_close(logits[:, 0], model(new)[:, 2], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_forward_pass_writes_into_the_memory_of_the_cache(config):
    model = TransformerLM(config, vocab_size=61)
    cache = KeyValueCache(config, 2, config.context_length, torch.float32, CPU)
    address = cache.keys.data_ptr()
    model(torch.tensor([[1, 2]]), cache=cache.prompts(torch.tensor([1]), torch.tensor([2])))
    assert cache.keys.data_ptr() == address
    assert cache.keys[:, 1, :, :2].all() and not cache.keys[:, 0].any() and not cache.keys[:, 1, :, 2:].any()
