import dataclasses

import torch

from lm.model.accounting import parameters
from lm.model.transformer import TransformerLM
from lm.studies.ablation import cell
from lm.studies.config import VariantConfig


def test_a_cell_changes_the_switches_and_nothing_else(params):
    baseline, post_norm = cell(params, "baseline", 1), cell(params, "post-norm", 1)
    assert dataclasses.replace(post_norm.model, norm_position="pre") == baseline.model
    assert post_norm.optim == baseline.optim and post_norm.train == baseline.train
    assert dataclasses.replace(cell(params, "baseline", 2).train, seed=1) == baseline.train


def test_a_row_does_not_depend_on_the_switches_of_the_model(params):
    switched = dataclasses.replace(
        params,
        model=dataclasses.replace(
            params.model, norm="none", norm_position="post", position="none", ffn="silu", tie_embeddings=True
        ),
    )
    for variant in params.ablate.run:
        assert cell(switched, variant, 1) == cell(params, variant, 1)


def test_the_learning_rate_is_scaled_as_a_whole(params):
    normal, low = cell(params, "no-norm", 1).optim, cell(params, "no-norm-low-lr", 1).optim
    scale = params.ablate.variants["no-norm-low-lr"].learning_rate_scale
    assert scale < 1
    assert low.max_learning_rate == normal.max_learning_rate * scale
    assert low.min_learning_rate == normal.min_learning_rate * scale


def test_every_variant_of_the_issue_is_there_and_builds(params):
    expected = {
        "baseline": {},
        "no-norm": {"norm": "none"},
        "no-norm-low-lr": {"norm": "none"},
        "post-norm": {"norm_position": "post"},
        "no-position": {"position": "none"},
        "learned-position": {"position": "learned"},
        "layernorm": {"norm": "layernorm"},
        "silu": {"ffn": "silu"},
    }
    plain = {"norm": "rmsnorm", "norm_position": "pre", "position": "rope", "ffn": "swiglu", "tie_embeddings": False}
    assert params.ablate.run == list(expected)
    for variant, changes in expected.items():
        model = cell(params, variant, 1).model
        assert {name: getattr(model, name) for name in plain} == plain | changes
        with torch.device("meta"):
            TransformerLM(model, 512)
    sizes = {name: sum(parameters(cell(params, name, 1).model, 512).values()) for name in ("baseline", "silu")}
    assert sizes["baseline"] == sizes["silu"]


def test_a_variant_states_every_switch():
    names = {field.name for field in dataclasses.fields(VariantConfig)}
    assert names == {"norm", "norm_position", "position", "ffn", "tie_embeddings", "learning_rate_scale"}
