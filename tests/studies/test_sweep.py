import math

import pandas as pd
from PIL import Image

from lm.studies.sweep import choose_learning_rates, sweep_picture


def cells(*rows: tuple[str, float, float, int]) -> pd.DataFrame:
    """Runs of one size and budget from variant, learning rate, loss and whether they diverged."""
    table = pd.DataFrame(rows, columns=["variant", "learning_rate", "loss", "diverged"])
    return table.assign(size="64x2", tokens=1000, seed=1)


def test_the_best_rate_has_the_lowest_loss():
    table = cells(
        ("a", 0.01, 2.0, 0), ("a", 0.02, 1.5, 0), ("a", 0.04, 1.7, 0), ("b", 0.01, 1.0, 0), ("b", 0.02, 3.0, 0)
    )
    assert choose_learning_rates(table, ["64x2-1000"]) == {"a": {"64x2-1000": 0.02}, "b": {"64x2-1000": 0.01}}


def test_a_rate_at_which_the_run_diverged_is_not_the_best():
    table = cells(("a", 0.01, 2.0, 0), ("a", 0.02, 1.5, 1), ("a", 0.04, math.nan, 1))
    assert choose_learning_rates(table, ["64x2-1000"]) == {"a": {"64x2-1000": 0.01}}


def test_a_variant_that_diverges_at_every_rate_gets_the_lowest_one():
    table = cells(("a", 0.02, 2.0, 1), ("a", 0.01, math.nan, 1))
    assert choose_learning_rates(table, ["64x2-1000"]) == {"a": {"64x2-1000": 0.01}}


def test_a_point_that_is_not_in_the_sweep_takes_the_rate_of_the_closest_one():
    sweep = {"32x2-100": 0.04, "64x2-100": 0.02, "64x2-1600": 0.01}
    table = pd.concat(
        cells(("a", rate, 1.0, 0)).assign(size=point.split("-")[0], tokens=int(point.split("-")[1]))
        for point, rate in sweep.items()
    )
    expected = {
        **sweep,
        "64x2-399": 0.02,  # the middle of the two ratios is 400
        "64x2-401": 0.01,
        "128x3-100": 0.02,  # the size comes first
        "16x1-1600": 0.04,
        "44x2-100": 0.04,  # the middle of the two sizes is 32 sqrt(2) = 45.3
        "46x2-100": 0.02,
    }
    assert choose_learning_rates(table, list(expected)) == {"a": expected}


def test_the_picture_of_several_sizes_and_of_runs_that_diverged(tmp_path):
    table = cells(("a", 0.01, 2.0, 0), ("a", 0.02, 50.0, 0), ("b", 0.01, 1.9, 0), ("b", 0.02, math.nan, 1))
    table = pd.concat([table, table.assign(size="32x1", diverged=1)])
    sweep_picture(table, tmp_path / "sweep.png")
    with Image.open(tmp_path / "sweep.png") as image:
        assert image.width > 500 and len(image.convert("RGB").getcolors(1 << 20) or []) > 10
