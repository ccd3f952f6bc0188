import dataclasses

import pytest

from lm import config
from lm.config import Params
from lm.studies.cell import Cell, configure
from lm.studies.cost import cost

VOCAB = 512


def cost_of(params: Params, variant: str, **changes: float) -> dict[str, float]:
    grid = config.grid(params, "ablate")
    cell = Cell(variant=variant, point="64x2-153600", seed=1)
    variants = {variant: dataclasses.replace(grid.variants[variant], **changes)}
    return cost(configure(dataclasses.replace(grid, variants=variants), cell, 0.01), VOCAB)


def test_the_three_counts_of_parameters(params: Params):
    counts = cost_of(params, "baseline")
    blocks = 2 * (4 * 64 * 64 + 3 * 64 * 176) + 5 * 64  # two blocks and five norms
    assert counts["num_parameters_of_blocks"] == blocks
    assert counts["num_parameters_without_embeddings"] == blocks + 64 * VOCAB
    assert counts["num_parameters"] == blocks + 2 * 64 * VOCAB


def test_a_tied_head_and_learned_positions_take_no_part_in_the_second_count(params: Params):
    baseline, tied, learned = (cost_of(params, name) for name in ("baseline", "tied", "learned-position"))
    name = "num_parameters_without_embeddings"
    assert tied[name] == learned[name] == baseline[name]
    assert tied["num_parameters"] == baseline["num_parameters"] - 64 * VOCAB
    assert learned["num_parameters"] == baseline["num_parameters"] + 64 * params.model.context_length


def test_flops_of_a_training_in_one_and_in_two_lengths(params: Params):
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 176) + 64 * VOCAB
    attention = 12 * 2 * 64  # per token and position of the window
    context, tokens = params.model.context_length, 153_600
    assert cost_of(params, "baseline")["flops"] == tokens * (6 * weights + attention * context)
    short = cost_of(params, "baseline", short_fraction=0.5)["flops"]
    assert short == pytest.approx(tokens * (6 * weights + attention * (context + 64) / 2))
