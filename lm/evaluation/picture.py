"""The evaluation of a model as a picture."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lm.evaluation.kinds import KINDS
from lm.evaluation.minimal_pairs import PAIR_KINDS
from lm.evaluation.statistics import Metrics, Reliability
from lm.evaluation.table import KIND_NAMES
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
    _draw_positions(grid[-1][0], metrics)
    _draw_reliability(grid[-1][1], metrics, reliability)
    if has_kinds:
        _draw_excess(grid[0][0], metrics)
    if has_pairs:
        _draw_pairs(grid[0][1], metrics)
    elif has_kinds:
        grid[0][1].remove()
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def _draw_excess(axes: Axes, metrics: Metrics) -> None:
    """Bars with one standard error. They sum to the whole distance from the entropy."""
    kinds = [kind for kind in KINDS if f"{kind}_nats" in metrics]
    values = [metrics[f"{kind}_excess_bits_per_byte"] for kind in kinds]
    errors = [metrics.get(f"{kind}_excess_bits_per_byte_stderr", 0.0) for kind in kinds]
    axes.barh([KIND_NAMES[kind] for kind in kinds], values, xerr=errors, color="C0")
    axes.invert_yaxis()
    total = metrics["excess_bits_per_byte"]
    axes.set(title=f"above the entropy: {total:.4f} bits per byte in total", xlabel="bits per byte of all text")


def _draw_pairs(axes: Axes, metrics: Metrics) -> None:
    """Points with their 95% confidence intervals."""
    labels = {"minimal_pair_accuracy": "all"}
    labels |= {f"minimal_pair_accuracy_{kind}": KIND_NAMES[kind] for kind in PAIR_KINDS}
    names = [name for name in labels if name in metrics]
    for row, name in enumerate(names):
        axes.plot([metrics[f"{name}_low"], metrics[f"{name}_high"]], [row, row], color="C0")
        axes.plot(metrics[name], row, marker="o", color="C0")
    axes.set_yticks(range(len(names)), [labels[name] for name in names])
    axes.axvline(0.5, linestyle="--", color="gray")
    axes.invert_yaxis()
    axes.set(title="minimal pairs", xlabel="the true story is more probable", xlim=(0, 1.02))


def _draw_positions(axes: Axes, metrics: Metrics) -> None:
    prefix = "nats_from_token_"
    starts = [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)]
    axes.plot(starts, [metrics[prefix + start] for start in starts], marker="o")
    axes.set(
        title="loss by position in the document",
        xlabel="first position of the group",
        ylabel="nats per token",
        ylim=(0, None),
    )


def _draw_reliability(axes: Axes, metrics: Metrics, reliability: Reliability) -> None:
    axes.plot([0, 1], [0, 1], linestyle="--", color="gray")
    axes.scatter(reliability.probability, reliability.accuracy, s=20 + 400 * reliability.weight, alpha=0.7)
    axes.set(
        title=f"calibration error: {metrics['calibration_error']:.4f}",
        xlabel="probability of the most probable token",
        ylabel="share that is right",
        xlim=(0, 1.02),
        ylim=(0, 1.02),
    )
