"""The evaluation of a model as a picture."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lm.evaluation.kinds import KINDS
from lm.evaluation.minimal_pairs import PAIR_KINDS
from lm.evaluation.statistics import Metrics, Reliability
from lm.evaluation.table import KIND_NAMES, losses_by_position
from lm.pictures import save_figure


def evaluation_picture(metrics: Metrics, reliability: Reliability | None, path: Path) -> None:
    """Draw the loss by position, the reliability of the most probable token and, where they are known, the excess over
    the entropy by kind of token, and the minimal pairs.
    """
    has_kinds, has_pairs = "floor_bits_per_byte" in metrics, "minimal_pair_accuracy" in metrics
    figure = Figure(figsize=(11, 7 if has_kinds else 3.5), layout="constrained")
    if reliability is None:
        figure.suptitle("The model's loss is not finite.")
        save_figure(figure, path)
        return
    grid = figure.subplots(2 if has_kinds else 1, 2, squeeze=False)
    panels: list[tuple[Axes, str, Callable[[Axes], None]]] = [
        (grid[-1][0], "loss by position in the document", partial(draw_positions, metrics=metrics)),
        (
            grid[-1][1],
            f"calibration error: {metrics['calibration_error']:.4f}",
            partial(draw_reliability, reliability=reliability),
        ),
    ]
    if has_kinds:
        title = f"{metrics['excess_bits_per_byte']:.4f} bits per byte above the entropy"
        panels.append((grid[0][0], title, partial(draw_excess, metrics=metrics)))
    if has_pairs:
        panels.append((grid[0][1], "minimal pairs", partial(draw_pairs, metrics=metrics)))
    elif has_kinds:
        grid[0][1].remove()
    for axes, title, draw in panels:
        draw(axes)
        axes.set_title(title)
    save_figure(figure, path)


def draw_excess(axes: Axes, metrics: Metrics) -> None:
    """The excess over the entropy by kind of token, as bars with one standard error, which sum to the whole excess."""
    kinds = [kind for kind in KINDS if f"{kind}_nats" in metrics]
    values = [metrics[f"{kind}_excess_bits_per_byte"] for kind in kinds]
    errors = [metrics.get(f"{kind}_excess_bits_per_byte_stderr", 0.0) for kind in kinds]
    axes.barh([KIND_NAMES[kind] for kind in kinds], values, xerr=errors, color="C0", ecolor="gray")
    axes.invert_yaxis()
    axes.set(xlabel="bits per byte of all text", axisbelow=True)
    axes.grid(alpha=0.3, axis="x")


def draw_pairs(axes: Axes, metrics: Metrics) -> None:
    """How often the true story of a minimal pair is more probable, as points with their 95% confidence intervals."""
    labels = {"minimal_pair_accuracy": "all"}
    labels |= {f"minimal_pair_accuracy_{kind}": KIND_NAMES[kind] for kind in PAIR_KINDS}
    names = [name for name in labels if name in metrics]
    for row, name in enumerate(names):
        axes.plot([metrics[f"{name}_low"], metrics[f"{name}_high"]], [row, row], color="C0")
        axes.plot(metrics[name], row, marker="o", color="C0")
    axes.set_yticks(range(len(names)), [labels[name] for name in names])
    axes.axvline(0.5, linestyle="--", color="gray")
    axes.margins(y=0.2)
    axes.invert_yaxis()
    axes.set(xlabel="the true story is more probable", xlim=(0, 1.02))
    axes.grid(alpha=0.3)


def draw_positions(axes: Axes, metrics: Metrics) -> None:
    """The loss by position in the document, in groups of positions of which each is twice as long."""
    losses = losses_by_position(metrics)
    axes.plot([str(start) for start in losses], list(losses.values()), marker="o")
    axes.set(xlabel="first position of the group", ylabel="nats per token", ylim=(0, None))
    axes.grid(alpha=0.3)


def draw_reliability(axes: Axes, reliability: Reliability) -> None:
    """How often the most probable token is right, by its probability; the area of a point grows with its weight."""
    axes.plot([0, 1], [0, 1], linestyle="--", color="gray")
    axes.scatter(reliability.probability, reliability.accuracy, s=20 + 400 * reliability.weight, alpha=0.7)
    axes.set(
        xlabel="probability of the most probable token",
        ylabel="share that is right",
        xlim=(0, 1.02),
        ylim=(0, 1.02),
    )
    axes.grid(alpha=0.3)
