"""The section on the training run."""

from collections.abc import Callable
from contextlib import suppress

from matplotlib.axes import Axes

from lm.errors import UserError
from lm.report.blocks import Block, Plot, Section, Table
from lm.report.curve import (
    draw_bits_per_byte,
    draw_gradient_norm,
    draw_kinds,
    draw_learning_rate,
    draw_losses,
    plot,
)
from lm.report.numbers import count, short
from lm.report.run import Run
from lm.training.history import History

_COMMAND = "dvc repro train"


def _finding(run: Run) -> str:
    metrics = run.metrics("train")
    if metrics["diverged"]:
        return f"The run diverged after {count(metrics['step'])} steps."
    loss = metrics["document_bits_per_byte" if "document_bits_per_byte" in metrics else "val_bits_per_byte"]
    steps, tokens = count(metrics["step"]), short(metrics["tokens"])
    text = f"After {steps} steps and {tokens} tokens, the loss is {loss:.4f} bits per byte"
    if floor := metrics.get("floor_bits_per_byte"):
        text += f", {loss - floor:.4f} above the entropy of the text"
    step = looks_back_from(run)
    return f"{text}. The model looks back for names from step {count(step)} on." if step is not None else f"{text}."


def looks_back_from(run: Run) -> int | None:
    """The first evaluation from which on later mentions of names cost less than the least that first mentions can cost.

    A model that does not look back would have to draw a name at every mention, as the grammar does at the first one.
    None if the model never does, or the kinds of tokens are not known.
    """
    least = None
    with suppress(UserError):  # the stage evaluate may not have run yet
        least = run.metrics("evaluate").get("first_name_floor_nats")
    step = None
    for row in run.curve:
        loss = row.get("later_name_nats")
        if loss is None or least is None or loss >= least:
            step = None
        elif step is None:
            step = row["step"]
    return step


def _curves(run: Run) -> list[Block]:
    history = run.curve
    floor = run.metrics("train").get("floor_bits_per_byte")
    panels: list[tuple[str, str, str, Callable[[Axes], None]]] = [
        ("losses", "Loss", "val_loss", lambda axes: draw_losses(axes, {"": history})),
        (
            "bits-per-byte",
            "Loss in bits per byte" + (", and the entropy of the text" if floor else ""),
            "document_bits_per_byte",
            lambda axes: draw_bits_per_byte(axes, {"": history}, floor),
        ),
        ("kinds", "Loss by kind of token", "wording_nats", lambda axes: draw_kinds(axes, history)),
        ("gradient-norm", "Gradient norm", "grad_norm", lambda axes: draw_gradient_norm(axes, history)),
        ("learning-rate", "Learning rate", "learning_rate", lambda axes: draw_learning_rate(axes, history)),
    ]
    return [
        Plot(name=name, title=title, figure=plot(draw), alt=_describe(title, history, column), command=_COMMAND)
        for name, title, column, draw in panels
    ]


def _describe(title: str, history: History, column: str) -> str:
    values = [row[column] for row in history if row.get(column) is not None]
    steps = f"{title} over {count(history[-1]['step'])} steps"
    return f"{steps}: from {values[0]:.3g} to {values[-1]:.3g}" if values else steps


def _continuations(run: Run) -> list[Block]:
    rows = [(count(row["step"]), row["continuation"]) for row in run.curve]
    return [
        Table(
            title=f"What the model makes of “{run.params.train.prompt}”",
            header=("step", "most probable continuation"),
            rows=rows,
            numeric=False,
            command=_COMMAND,
        )
    ]


def _first_text(run: Run) -> str:
    evaluations = len(run.curve)
    return f"At each of its {count(evaluations)} evaluations, the model continues the same prompt."


TRAINING = Section("training", "Training", _finding, [_curves])
SAMPLES = Section("samples", "Samples over training", _first_text, [_continuations])
