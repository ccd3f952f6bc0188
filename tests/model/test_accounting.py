import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lm.model.accounting import parameters, training_bytes, training_flops_per_token
from lm.model.transformer import TransformerLM
from lm.training.loss import cross_entropy

VARIANTS = [
    {},
    {"norm": "layernorm"},
    {"norm": "none"},
    {"norm_position": "post"},
    {"position": "learned"},
    {"position": "none"},
    {"ffn": "silu"},
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
def test_flops_equal_pytorchs_count_of_the_reference(small, changes):
    config = dataclasses.replace(small, **changes)
    model = TransformerLM(config, vocab_size=61, attention_backend="reference")
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(3, 16, dtype=torch.long)).sum().backward()
    assert counter.get_total_flops() == 3 * 16 * training_flops_per_token(config, 61)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", VARIANTS)
def test_activation_bytes_are_those_that_autograd_saves(small, changes, precision):
    config = dataclasses.replace(small, d_model=64, d_ff=160, context_length=32, **changes)
    model = TransformerLM(config, vocab_size=61)
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(torch.zeros(8, 32, dtype=torch.long))
        cross_entropy(logits, torch.zeros(8, 32, dtype=torch.long))
    predicted = training_bytes(config, 61, micro_batch_size=8, precision=precision)["activations"]
    assert predicted == pytest.approx(sum(saved.values()), rel=0.05)
