import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lm.model.cost import parameters, training_flops_per_token
from lm.model.transformer import TransformerLM

VARIANTS = [
    {},
    {"norm": "layernorm"},
    {"norm": "none"},
    {"norm_position": "post"},
    {"position": "learned"},
    {"position": "none"},
    {"qk_norm": True},
    {"ffn": "silu"},
    {"ffn": "relu_squared"},
    {"canon": True},
    {"num_kv_heads": 2},
    {"tie_embeddings": True},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_parameters_are_those_of_the_model(small, changes):
    config = dataclasses.replace(small, **changes)
    with torch.device("meta"):
        model = TransformerLM(config, vocab_size=61)
    assert sum(parameters(config, 61).values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("changes", VARIANTS)
def test_flops_equal_pytorchs_count_of_the_reference(small, changes, monkeypatch):
    # PyTorch does not count oneDNN's operator.
    monkeypatch.setattr("lm.model.fused.products.prefers_onednn", lambda: False)
    config = dataclasses.replace(small, **changes)
    model = TransformerLM(config, vocab_size=61, attention_backend="reference")
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(3, 16, dtype=torch.long)).sum().backward()
    # Nor the elementwise operations of Canon layers: in each, four multiplications and additions per coordinate.
    canon = 2 * config.num_layers * 8 * config.d_model if config.canon else 0
    assert counter.get_total_flops() == 3 * 16 * (training_flops_per_token(config, 61) - 3 * canon)
