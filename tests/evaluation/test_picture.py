import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lm.evaluation.picture import draw_excess, draw_pairs, draw_positions, draw_reliability
from lm.evaluation.statistics import Reliability


@pytest.fixture
def axes() -> Axes:
    return Figure().subplots()


def labels(axes: Axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_the_bars_are_the_excess_of_the_kinds_that_there_are(axes):
    metrics = {
        "wording_nats": 1.0,
        "wording_excess_bits_per_byte": 0.25,
        "wording_excess_bits_per_byte_stderr": 0.125,
        "later_name_nats": 2.0,
        "later_name_excess_bits_per_byte": 0.5,  # of one story, so there is no standard error
    }
    draw_excess(axes, metrics)
    assert [bar.get_width() for bar in axes.patches] == [0.25, 0.5]
    assert labels(axes) == ["wording", "later mentions of names"]


def test_the_pairs_have_intervals(axes):
    metrics = {"minimal_pair_accuracy": 0.75, "minimal_pair_accuracy_low": 0.5, "minimal_pair_accuracy_high": 1.0}
    metrics |= {name.replace("accuracy", "accuracy_attribute"): value / 2 for name, value in metrics.items()}
    draw_pairs(axes, metrics)
    drawn = [line.get_xdata() for line in axes.lines]
    assert [list(x) for x in drawn] == [[0.5, 1.0], [0.75], [0.25, 0.5], [0.375], [0.5, 0.5]]
    assert labels(axes) == ["all", "pronouns and other attributes"]


def test_the_losses_are_in_the_order_of_the_positions(axes):
    draw_positions(axes, {"nats_per_token": 1.5, "nats_from_token_0": 2.0, "nats_from_token_16": 1.0})
    assert axes.lines[0].get_ydata() == pytest.approx([2, 1])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "16"]


def test_a_point_is_a_bin(axes):
    draw_reliability(axes, Reliability(np.array([0.25, 0.75]), np.array([0.5, 1.0]), np.array([0.1, 0.9])))
    (points,) = axes.collections
    assert points.get_offsets().tolist() == [[0.25, 0.5], [0.75, 1.0]]
    assert points.get_sizes().tolist() == pytest.approx([60, 380])
