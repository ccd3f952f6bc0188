import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lm.studies.scaling.isoflop import isoflops
from lm.studies.scaling.law import Law
from lm.studies.scaling.picture import draw_curves, draw_forecasts, draw_isoflops, sequence
from lm.studies.scaling.runs import Runs

LAW = Law(A=20.0, B=1200.0, E=0.5, alpha=0.45, beta=0.55)
SIZES, TOKENS = (1e3, 1e4, 1e5), (1e5, 1e6, 1e7)


@pytest.fixture
def axes() -> Axes:
    return Figure().subplots()


@pytest.fixture
def runs() -> Runs:
    sizes, tokens = (values.reshape(-1) for values in np.meshgrid(SIZES, TOKENS))
    return Runs(sizes, tokens, np.asarray(LAW.loss(sizes, tokens)))


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(color)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the well-known gray just below AA


@pytest.mark.parametrize("page", ["#ffffff", "#1c2024"])
def test_every_color_of_the_sequence_is_seen_on_a_light_and_on_a_dark_page(page):
    assert min(contrast(color, page) for color in sequence(256)) >= 3


def test_sizes_that_follow_each_other_have_different_colors():
    colors = np.array([to_rgb(color) for color in sequence(8)])
    assert np.abs(np.diff(colors, axis=0)).max(axis=1).min() > 0.08


def test_the_curves_go_through_runs_that_follow_the_law(axes, runs):
    draw_curves(axes, runs, LAW, "entropy", "bits per byte")
    *lines, floor = axes.lines
    assert list(floor.get_ydata()) == [0.5, 0.5]
    for points, curve in zip(lines[::2], lines[1::2], strict=True):
        assert points.get_color() == curve.get_color()
        for end in (0, -1):
            assert curve.get_ydata()[end] == pytest.approx(points.get_ydata()[end])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["N = 1k", "N = 10k", "N = 100k", "entropy"]


def test_a_forecast_has_its_mean_absolute_error(axes):
    draw_forecasts(axes, {"E fitted": (np.array([1.0, 2.0]), np.array([1.1, 1.9]))})  # 10% and 5%
    labels = [text.get_text().replace("\n", " ") for text in axes.get_legend().get_texts()]
    assert labels == ["E fitted, mean absolute error 7.50%", "no error"]


def test_without_a_forecast_the_panel_says_so(axes):
    draw_forecasts(axes, {})
    assert [text.get_text() for text in axes.texts] == ["too few runs for a forecast"]


def test_the_star_is_at_the_minimum_of_the_parabola(axes):
    sizes = np.geomspace(1e3, 1e5, 5)
    loss = 1 + 0.01 * np.log(sizes / 2e4) ** 2
    levels = isoflops(Runs(sizes, 1e9 / sizes, loss), LAW)
    draw_isoflops(axes, levels, "parameters", "loss")
    (star,) = (line for line in axes.lines if line.get_marker() == "*" and len(line.get_xdata()))
    assert star.get_xdata()[0] == pytest.approx(2e4)
    assert star.get_ydata()[0] == pytest.approx(1)


def test_levels_with_too_few_sizes_are_not_drawn(axes, runs):
    draw_isoflops(axes, isoflops(runs.select(np.arange(2)), LAW), "parameters", "loss")
    assert [text.get_text() for text in axes.texts] == ["no three sizes have about the same FLOPs"]
