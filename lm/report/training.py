"""The section on the training run."""

import functools

from lm.report.blocks import Block, Facts, Plot, Section, Table
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

_COMMAND = "dvc repro train"


def _finding(run: Run) -> str:
    metrics = run.metrics("train")
    if metrics["diverged"]:
        return f"The run diverged: after {count(metrics['step'])} steps, the loss is not finite or above that of step 0."
    loss = metrics.get("document_bits_per_byte", metrics["val_bits_per_byte"])
    text = f"After {count(metrics['step'])} steps and {short(metrics['tokens'])} tokens, the loss is {loss:.4f} bits per byte"
    if floor := metrics.get("floor_bits_per_byte"):
        text += f", {loss - floor:.4f} above the entropy of the text"
    step = looks_back_from(run)
    return f"{text}. The model looks back for names from step {count(step)} on." if step is not None else f"{text}."


def looks_back_from(run: Run) -> int | None:
    """The first evaluation from which on later mentions of names cost less than the least that first mentions can cost.

    A model that does not look back would have to draw a name at every mention, as the grammar does at the first one.
    None if the model never does, or the kinds of tokens are not known.
    """
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
    last = history[-1]
    floor = run.metrics("train").get("floor_bits_per_byte")
    panels = {
        "losses": (functools.partial(draw_losses, curves={"": history}), "Loss", "val_loss"),
        "bits-per-byte": (
            functools.partial(draw_bits_per_byte, curves={"": history}, floor=floor),
            "Bits per byte, and the entropy of the text" if floor else "Bits per byte",
            "document_bits_per_byte",
        ),
        "kinds": (functools.partial(draw_kinds, history=history), "Loss by kind of token", "wording_nats"),
        "learning-rate": (functools.partial(draw_learning_rate, history=history), "Learning rate", "learning_rate"),
        "gradient-norm": (functools.partial(draw_gradient_norm, history=history), "Gradient norm", "grad_norm"),
    }
    return [
        Plot(
            name=name,
            title=title,
            figure=plot(draw),
            alt=f"{title} over {count(last['step'])} steps" + (f"; {column}, last: {last[column]:.4g}" if last.get(column) is not None else ""),
            command=_COMMAND,
        )
        for name, (draw, title, column) in panels.items()
    ]


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


TRAINING = Section("training", "Training", _finding, [_curves])
SAMPLES = Section("samples", "Samples over training", lambda run: "", [_continuations])
