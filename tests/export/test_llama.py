import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lm.errors import UserError
from lm.export.llama import check_layout, hugging_face_config, llama_weights, to_halves, to_neighbours
from lm.model.transformer import TransformerLM


def test_halves_take_every_other_row_of_each_head_first():
    rows = torch.arange(8)
    assert to_halves(rows, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert to_halves(rows, 8).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize("d_head", [2, 6, 8])
def test_neighbours_are_the_inverse_of_halves(d_head):
    rows = torch.randn(3 * d_head, 5)
    assert to_neighbours(to_halves(rows, d_head), d_head).equal(rows)
    assert to_neighbours(rows[:, 0], d_head).equal(to_neighbours(rows, d_head)[:, 0])


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_names_and_shapes_are_those_of_transformers(small, qk_norm, tie_embeddings):
    config = dataclasses.replace(small, num_kv_heads=2, qk_norm=qk_norm, tie_embeddings=tie_embeddings)
    model = TransformerLM(config, vocab_size=61)
    values = hugging_face_config(model, end_of_text_id=60)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    assert type(theirs).__name__ == values["architectures"][0]
    shapes = {name: weight.shape for name, weight in theirs.named_parameters()}
    assert {name: weight.shape for name, weight in llama_weights(model, halves=True).items()} == shapes


def test_a_refusal_names_each_switch_and_the_value_needed(small):
    check_layout(dataclasses.replace(small, qk_norm=True, num_kv_heads=1, tie_embeddings=True))
    config = dataclasses.replace(small, norm="layernorm", norm_position="post", position="none", ffn="silu")
    with pytest.raises(UserError) as error:
        check_layout(config)
    for sentence in (
        "model.norm is layernorm and would have to be rmsnorm",
        "model.norm_position is post and would have to be pre",
        "model.position is none and would have to be rope",
        "model.ffn is silu and would have to be swiglu",
    ):
        assert sentence in str(error.value)
