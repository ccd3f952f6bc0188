import dataclasses

import pytest
import torch
from ruamel.yaml import YAML

from lm import config
from lm.config import Params
from lm.errors import UserError
from lm.model.cost import parameters
from lm.model.transformer import TransformerLM
from lm.studies.cell import Cell, configure, grid_cells, sweep_cells
from lm.studies.config import CommonConfig, Grid, SwitchesConfig
from lm.training.config import RunConfig


@pytest.fixture(scope="module")
def grid(params: Params) -> Grid:
    return config.grid(params, "ablate")


def cell(grid: Grid, variant: str = "baseline", point: str = "64x2-153600", seed: int = 1) -> RunConfig:
    return configure(grid, Cell(variant=variant, point=point, seed=seed), learning_rate=0.01)


def changed(run: RunConfig, section: str, **values: object) -> RunConfig:
    """`run` with some values of a section replaced."""
    return dataclasses.replace(run, **{section: dataclasses.replace(getattr(run, section), **values)})


def test_a_variant_changes_its_switches_and_nothing_else(grid):
    assert changed(cell(grid, "post-norm"), "model", norm_position="pre") == cell(grid)
    assert changed(cell(grid, "muon"), "optim", optimizer="adamw") == cell(grid)
    assert changed(cell(grid, seed=2), "train", seed=1) == cell(grid)


def test_a_size_is_the_width_and_the_number_of_layers(grid):
    model = cell(grid, point="128x3-153600").model
    assert (model.d_model, model.num_layers, model.num_heads, model.d_head) == (128, 3, 4, 32)
    assert model.d_ff == 344  # as in the default model: 8/3 of 128 is 341.3
    narrow = cell(grid, point="16x1-153600").model
    assert (narrow.num_heads, narrow.d_head) == (1, 16)


def test_a_point_has_a_number_of_tokens(grid, params):
    run = cell(grid)
    assert run.train.max_steps == 153_600 / (4 * params.model.context_length)
    assert run.num_tokens(run.train.max_steps) == 153_600
    assert run.train.eval_every == run.train.max_steps  # one evaluation
    large = cell(grid, "large-batch")
    assert large.train.max_steps == run.train.max_steps / 4


def test_the_final_decay_is_a_share_of_the_steps(grid):
    run = cell(grid, "wsd")
    assert run.optim.decay_steps == 0.2 * run.train.max_steps
    assert cell(grid).optim.decay_steps == 0


def test_both_learning_rates_are_scaled(grid):
    normal, low = (cell(grid, variant).optim for variant in ("no-norm", "no-norm-low-lr"))
    scale = grid.variants["no-norm-low-lr"].learning_rate_scale
    assert scale < 1
    assert low.max_learning_rate == normal.max_learning_rate * scale
    assert low.min_learning_rate == pytest.approx(normal.min_learning_rate * scale)
    assert normal.min_learning_rate == pytest.approx(0.001 * normal.max_learning_rate)


def test_a_row_does_not_depend_on_the_switches_of_the_main_run(grid, params):
    switched = dataclasses.replace(
        params,
        model=dataclasses.replace(
            params.model,
            norm="none",
            norm_position="post",
            position="none",
            qk_norm=True,
            ffn="silu",
            canon=True,
            tie_embeddings=True,
        ),
        optim=dataclasses.replace(params.optim, optimizer="muon", schedule="wsd", decay_steps=7, decay_shape="1-sqrt"),
        train=dataclasses.replace(params.train, document_mask=True, max_skipped_steps=3, initial_model="x", seed=9),
    )
    for variant in grid.run:
        assert cell(config.grid(switched, "ablate"), variant) == cell(grid, variant)


def test_the_released_variants_change_what_their_names_say_and_build(grid):
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
    assert set(expected) <= set(grid.run)
    for variant, changes in expected.items():
        model = cell(grid, variant).model
        assert {name: getattr(model, name) for name in plain} == plain | changes
        with torch.device("meta"):
            TransformerLM(model, 512)


@pytest.mark.parametrize("variant", ["silu", "relu-squared", "post-norm", "no-position"])
def test_variants_that_should_be_equally_large_are(grid, variant):
    sizes = [sum(parameters(cell(grid, name).model, 512).values()) for name in ("baseline", variant)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


def test_every_switch_reaches_the_run(grid):
    changes = {
        "norm": "layernorm",
        "norm_position": "post",
        "position": "learned",
        "qk_norm": True,
        "ffn": "silu",
        "canon": True,
        "tie_embeddings": True,
        "d_head": 16,
        "optimizer": "muon",
        "cautious_weight_decay": True,
        "schedule": "wsd",
        "decay_fraction": 0.5,
        "decay_shape": "linear",
        "batch_size": 8,
        "windows": "stream",
        "short_fraction": 0.5,
        "document_mask": True,
        "learning_rate_scale": 0.5,
        "final_learning_rate": 0.5,
    }
    assert {field.name for field in dataclasses.fields(SwitchesConfig)} == set(changes)
    chosen = Cell(variant="x", point="64x2-153600", seed=1)

    def run(switches: SwitchesConfig) -> RunConfig:
        return configure(dataclasses.replace(grid, variants={"x": switches}), chosen, learning_rate=0.01)

    for name, value in changes.items():
        before = grid.variants["baseline" if name == "schedule" else "wsd"]  # only wsd has a final decay
        assert run(dataclasses.replace(before, **{name: value})) != run(before), name


def test_the_error_names_the_cell(grid):
    with pytest.raises(UserError, match="the cell baseline-64x2-153600--1: seed: expected 0 to 4294967295, got -1"):
        cell(grid, seed=-1)
    with pytest.raises(UserError, match="the cell silu-33x1-153600-1: num_heads: rope needs an even"):
        cell(grid, "silu", point="33x1-153600")
    message = (
        r"64x2-{}-1: expected a multiple of 1,280 training tokens \(one step\), at least 25,600 for warmup and decay"
    )
    for tokens in (12_800, 153_601):
        with pytest.raises(UserError, match=f"{message.format(tokens)}, got {tokens:,}"):
            cell(grid, point=f"64x2-{tokens}")


def test_every_common_setting_is_tracked(project):
    """A setting that cells take from the main run must be a param of the stage plan, or their results are stale.

    Conversely, a parameter that no cell uses must not change the plan.
    """
    params = YAML(typ="safe").load(project / "dvc.yaml")["stages"]["plan"]["params"]
    tracked = [name.partition(".")[2] for name in params if name.split(".")[0] in ("model", "optim", "train")]
    assert sorted(tracked) == sorted(field.name for field in dataclasses.fields(CommonConfig))


def test_the_cells_of_a_grid_are_in_the_order_of_its_table(params):
    cells = grid_cells(config.grid(params, "scale"))
    assert list(cells)[:2] == [f"muon-{params.scale.points[0]}-1", f"muon-{params.scale.points[1]}-1"]
    assert len(cells) == len(params.scale.points) * len(params.scale.seeds)


def test_the_cells_of_a_sweep_have_the_first_seed(project):
    study = config.load_study(project / "studies/ablation/params.yaml").study
    cells = sweep_cells(study)
    assert len(cells) == len(study.run) * len(study.sweep.points) * len(study.sweep.learning_rates)
    assert {cell.seed for cell, _ in cells.values()} == {study.seeds[0]}
    assert {rate for _, rate in cells.values()} == set(study.sweep.learning_rates)


def test_the_names_of_cells_can_be_names_of_files(params):
    for section in ("ablate", "scale"):
        assert all("/" not in name for name in grid_cells(config.grid(params, section)))


@pytest.mark.parametrize("study", ["scaling", "ablation"])
def test_the_context_of_a_study_holds_whole_stories(project, study):
    """Otherwise its models could not reach the entropy of the text, with which their losses are compared."""
    params = config.load_study(project / f"studies/{study}/params.yaml")
    assert params.tokenizer.vocab_size == 1024
    longest = 415  # tokens of the longest of 4,000 stories with this vocabulary
    assert params.study.common.context_length >= longest + 1  # the token before it
