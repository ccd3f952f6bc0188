import dataclasses

import pytest
import torch

from lm.config import Params
from lm.errors import UserError
from lm.model.cost import parameters
from lm.model.transformer import TransformerLM
from lm.studies.ablation import cell
from lm.studies.config import SwitchesConfig


def test_a_cell_changes_the_switches_and_nothing_else(params):
    baseline, post_norm = cell(params, "baseline", 1), cell(params, "post-norm", 1)
    assert dataclasses.replace(post_norm.model, norm_position="pre") == baseline.model
    assert post_norm.optim == baseline.optim and post_norm.train == baseline.train
    assert dataclasses.replace(cell(params, "baseline", 2).train, seed=1) == baseline.train


def test_a_row_does_not_depend_on_the_switches_of_the_main_run(params):
    switched = dataclasses.replace(
        params,
        model=dataclasses.replace(
            params.model,
            norm="none",
            norm_position="post",
            position="none",
            qk_norm=True,
            ffn="silu",
            tie_embeddings=True,
        ),
        optim=dataclasses.replace(params.optim, name="muon", schedule="wsd", decay_steps=7, decay_shape="1-sqrt"),
        train=dataclasses.replace(params.train, document_mask=True),
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


def test_every_switch_reaches_the_run(params: Params):
    changes = {
        "norm": "layernorm",
        "norm_position": "post",
        "position": "learned",
        "qk_norm": True,
        "ffn": "silu",
        "tie_embeddings": True,
        "optimizer": "muon",
        "schedule": "wsd",
        "decay_steps": 7,
        "decay_shape": "1-sqrt",
        "document_mask": True,
        "learning_rate_scale": 0.5,
    }
    assert {field.name for field in dataclasses.fields(SwitchesConfig)} == set(changes)
    baseline = cell(params, "baseline", 1)
    for name, value in changes.items():
        switches = dataclasses.replace(params.ablate.switches, **{name: value})
        ablate = dataclasses.replace(params.ablate, run=["one"], variants={"one": switches})
        assert cell(dataclasses.replace(params, ablate=ablate), "one", 1) != baseline, name


def test_a_cell_that_cannot_be_is_named(params):
    with pytest.raises(UserError, match="the cell baseline, -1: seed: expected 0 to 4294967295, got -1"):
        cell(params, "baseline", -1)
    odd = dataclasses.replace(params, ablate=dataclasses.replace(params.ablate, run=["baseline"]))
    odd = dataclasses.replace(odd, model=dataclasses.replace(params.model, d_ff=47))
    with pytest.raises(UserError, match="the cell silu, 1: d_ff: expected an even number"):
        cell(odd, "silu", 1)
