import math

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from lm.studies.ablation import forest
from lm.studies.ablation.forest import axis_limit, forest_picture
from lm.studies.ablation.table import table


def runs(variant: str, losses: list[float], tokens: int = 1000, size: str = "64x2", floor: float = 0.5) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "variant": variant,
            "size": size,
            "tokens": tokens,
            "learning_rate": 0.01,
            "seed": range(len(losses)),
            "parameters": 1234,
            "flops": 6.0 * tokens,
            "diverged": [int(math.isnan(loss)) for loss in losses],
            "loss": losses,
            "floor": floor,
        }
    )


# The factor before the power law of the losses, and the deviations of the seeds from it in percent.
VARIANTS = {
    "baseline": (5, (0, 1, 2)),
    "better": (4, (0, 1.1, 2)),
    "worse": (6, (0, 1.1, 2)),
    "equal": (5, (0.1, 0.9, 2.1)),
    "wild": (500, (0, 1, 2)),
    "broken": (5, (0, math.nan, 1)),
}


def study(
    *variants: str, tokens: tuple[int, ...] = (1000, 4000), size: str = "64x2", floor: float = 0.5
) -> pd.DataFrame:
    return pd.concat(
        runs(name, [0.5 + scale * (1 + 0.01 * spread) / count**0.5 for spread in spreads], count, size, floor)
        for name, (scale, spreads) in VARIANTS.items()
        if name in variants
        for count in tokens
    )


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are drawn, instead of their files."""
    figures: list[Figure] = []
    monkeypatch.setattr(forest, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def draw(cells: pd.DataFrame, path) -> None:
    forest_picture(table(cells), cells, path)


def test_one_huge_difference_does_not_squash_the_others():
    assert axis_limit([0.01, 0.9, 0.02]) == 0.02
    assert axis_limit([0.01, 0.02, 0.09]) == 0.09
    assert axis_limit([0.01, 0.02, 0.03, 5.0, 6.0]) == 0.03
    assert axis_limit([0.001, 5.0, 6.0, 7.0]) == 7.0  # most are large
    assert axis_limit([0.0, 0.0, 1.0]) == 1.0
    assert axis_limit([0.3]) == 0.3


def test_a_row_per_variant_with_its_interval_and_multiplier(drawn, tmp_path):
    cells = study(*VARIANTS)
    draw(cells, tmp_path)
    axes, losses = drawn[0].axes
    frame = table(cells)
    frame = frame[frame["tokens"] == 4000].set_index("variant")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["better", "worse", "equal", "wild", "broken"]
    lines = {tuple(line.get_ydata()): list(line.get_xdata()) for line in axes.lines}
    assert lines[(0, 0)] == [frame.loc["better", "difference_low"], frame.loc["better", "difference_high"]]
    assert lines[(0,)] == [frame.loc["better", "difference"]]
    texts = [text.get_text() for text in axes.texts]
    assert any(text == f"{frame.loc['wild', 'difference']:+.3g}" for text in texts)
    assert "diverged, 1 of 3 runs" in texts
    assert axes.get_xlim()[1] < 0.1 < frame.loc["wild", "difference"]
    labels = [text.get_text() for text in losses.get_legend().get_texts()]
    assert labels == ["baseline", "better", "worse", "equal", "wild (above)", "broken (diverged)"]


def test_a_row_of_panels_per_size_and_the_losses_only_for_several_numbers_of_tokens(drawn, tmp_path):
    draw(pd.concat([study("baseline", "better"), study("baseline", "better", size="128x4")]), tmp_path)
    draw(study("baseline", "better", tokens=(1000,)), tmp_path)
    assert [len(figure.axes) for figure in drawn] == [4, 1]


def test_the_loss_of_a_run_that_diverged_is_not_drawn(drawn, tmp_path):
    cells = study("baseline", "better")
    cells.loc[(cells["variant"] == "better") & (cells["seed"] == 1), "diverged"] = 1  # their losses are finite
    draw(cells, tmp_path)
    forest, losses = drawn[0].axes
    assert [text.get_text() for text in forest.texts] == ["diverged, 1 of 3 runs"]
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["baseline", "better (diverged)"]
    lines = [line for line in losses.lines if line.get_label() == "better (diverged)"]
    assert all(math.isnan(value) for line in lines for value in line.get_ydata())


@pytest.mark.parametrize(
    "cells",
    [
        study("baseline", "worse", floor=math.nan),
        runs("baseline", [1.0]),
        pd.concat([runs("baseline", [1.0]), runs("x", [1.0])]),
        pd.concat([runs("baseline", [math.nan]), runs("x", [math.nan])]),
        pd.concat(runs(name, [math.nan], tokens) for name in ("baseline", "x") for tokens in (1000, 4000)),
        pd.concat([runs("baseline", [1.0]), runs("x", [1.0], size="128x4")]),
    ],
    ids=["no floor", "no variant", "equal", "no loss", "no loss at two numbers of tokens", "no pair"],
)
def test_every_study_has_a_picture(cells, tmp_path):
    draw(cells, tmp_path / "forest.png")
    assert imread(tmp_path / "forest.png").std() > 0.01


def test_the_same_study_has_the_same_picture(tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for path in (first, second):
        draw(study("baseline", "better", tokens=(1000,)), path)
    assert first.read_bytes() == second.read_bytes()
