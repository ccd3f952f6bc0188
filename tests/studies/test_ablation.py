import dataclasses
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from lm.config import Params
from lm.errors import UserError
from lm.model.cost import parameters
from lm.model.transformer import TransformerLM
from lm.studies.ablation import cell, overrides
from lm.studies.config import AblateConfig, SwitchesConfig
from lm.training.config import RunConfig


@pytest.fixture(scope="module")
def base(params: Params) -> RunConfig:
    return RunConfig(model=params.model, optim=params.optim, train=params.train)


@pytest.fixture(scope="module")
def ablate(params: Params) -> AblateConfig:
    return params.ablate


def changed(base: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """`base` with some values of its sections replaced."""
    return RunConfig(**{name: dataclasses.replace(vars(base)[name], **sections.get(name, {})) for name in vars(base)})


def test_a_cell_changes_the_switches_and_nothing_else(base, ablate):
    baseline, post_norm = cell(base, ablate, "baseline", 1), cell(base, ablate, "post-norm", 1)
    assert changed(post_norm, model={"norm_position": "pre"}) == baseline
    assert changed(cell(base, ablate, "baseline", 2), train={"seed": 1}) == baseline


def test_a_row_does_not_depend_on_the_switches_of_the_main_run(base, ablate):
    switched = changed(
        base,
        model={
            "norm": "none",
            "norm_position": "post",
            "position": "none",
            "qk_norm": True,
            "ffn": "silu",
            "tie_embeddings": True,
        },
        optim={"optimizer": "muon", "schedule": "wsd", "decay_steps": 7, "decay_shape": "1-sqrt"},
        train={"document_mask": True, "max_skipped_steps": 3, "initial_model": "data/other", "seed": 9},
    )
    for variant in ablate.run:
        assert cell(switched, ablate, variant, 1) == cell(base, ablate, variant, 1)


def test_both_learning_rates_are_scaled(base, ablate):
    normal, low = (cell(base, ablate, variant, 1).optim for variant in ("no-norm", "no-norm-low-lr"))
    scale = ablate.variants["no-norm-low-lr"].learning_rate_scale
    assert scale < 1
    assert low.max_learning_rate == normal.max_learning_rate * scale
    assert low.min_learning_rate == normal.min_learning_rate * scale


def test_the_released_variants_change_what_their_names_say_and_build(base, ablate):
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
    assert set(expected) <= set(ablate.run)
    for variant, changes in expected.items():
        model = cell(base, ablate, variant, 1).model
        assert {name: getattr(model, name) for name in plain} == plain | changes
        with torch.device("meta"):
            TransformerLM(model, 512)
    baseline, silu = (sum(parameters(cell(base, ablate, name, 1).model, 512).values()) for name in ("baseline", "silu"))
    assert baseline == silu


def test_every_switch_reaches_the_run(base, ablate):
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
        "windows": "stream",
        "short_fraction": 0.5,
        "document_mask": True,
        "learning_rate_scale": 0.5,
    }
    assert {field.name for field in dataclasses.fields(SwitchesConfig)} == set(changes)
    baseline = cell(base, ablate, "baseline", 1)
    for name, value in changes.items():
        switches = dataclasses.replace(ablate.switches, **{name: value})
        other = dataclasses.replace(ablate, run=["one"], variants={"one": switches})
        assert cell(base, other, "one", 1) != baseline, name


def test_the_error_names_the_cell(base, ablate):
    with pytest.raises(UserError, match="the cell baseline, -1: seed: expected 0 to 4294967295, got -1"):
        cell(base, ablate, "baseline", -1)
    with pytest.raises(UserError, match="the cell silu, 1: d_ff: expected an even number"):
        cell(changed(base, model={"d_ff": 47}), ablate, "silu", 1)


def test_every_parameter_is_tracked_or_overridden(base, ablate, project):
    """A parameter that a cell takes from the main run must be a param of the stage ablate, or its result is stale.

    Conversely, a cell must not run again because of a parameter that it does not use.
    """
    stage = YAML(typ="safe").load(project / "dvc.yaml")["stages"]["ablate"]
    tracked = {name for name in stage["params"] if name.split(".")[0] in ("model", "optim", "train")}
    replaced = {
        f"{section}.{name}"
        for section, values in overrides(base, ablate, "baseline", 1).items()
        for name in values
        if not name.endswith("_learning_rate")  # scaled, not replaced
    }
    fields = {f"{section}.{field.name}" for section, value in vars(base).items() for field in dataclasses.fields(value)}
    assert tracked | replaced == fields
    assert not tracked & replaced
