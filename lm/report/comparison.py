"""Experiments side by side, on a page like that of a single run."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from lm.errors import UserError, quote
from lm.report.blocks import Block, Missing, Plot, Section, Table, Text
from lm.report.curve import draw_bits_per_byte, draw_losses, plot
from lm.report.experiments import fetch
from lm.report.numbers import count
from lm.report.page import Report, fill
from lm.report.parameters import flatten, shown
from lm.report.run import METRICS, Run
from lm.training.history import History
from lm.yaml12 import read_yaml

Runs = Mapping[str, Run]

_MAX_RUNS = 8  # line styles and columns that can be told apart


def compare(names: Sequence[str]) -> Report:
    """A report on several experiments: parameters that differ, curves together, metrics and samples.

    Raises:
        UserError: there are too few or too many names, one is given twice, or there is no such experiment.
    """
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{quote(twice)}: given twice; name each experiment once")
    if not 2 <= len(names) <= _MAX_RUNS:
        raise UserError(
            f"expected 2 to {_MAX_RUNS} experiments, got {len(names)}; to compare one with this folder: "
            f"lm report workspace {names[0]}"
        )
    with TemporaryDirectory(prefix="lm-") as folder:
        runs: dict[str, Run] = {}
        for name in names:
            runs[name] = Run(Path(folder) / str(len(runs)))
            fetch(name, runs[name].folder)
        sections = [
            Section("parameters", "Parameters", lambda _: _finding(runs), [lambda _: _parameters(runs)]),
            Section("training", "Training", lambda _: "", [lambda _: _curves(runs)]),
            Section("metrics", "Metrics", lambda _: "", [lambda _: _metrics(runs)]),
            Section("samples", "Samples", lambda _: "", [lambda _: _samples(runs)]),
        ]
        return fill(runs[names[0]], " and ".join(names), sections)


def _finding(runs: Runs) -> str:
    """Which experiment has the lowest loss."""
    losses = {}
    for name, run in runs.items():
        metrics = run.metrics("train")
        loss = metrics.get("document_bits_per_byte", metrics.get("val_bits_per_byte"))
        if loss is None or metrics["diverged"]:
            return f"{name} diverged."
        losses[name] = loss
    if len(set(losses.values())) == 1:
        return f"The loss of all is the same: {next(iter(losses.values())):.4f} bits per byte."
    best, *others = sorted(losses, key=losses.__getitem__)
    differences = ", ".join(f"{losses[name] - losses[best]:.4f} below that of {name}" for name in others)
    return f"The loss of {best} is the lowest: {losses[best]:.4f} bits per byte, {differences}."


def _parameters(runs: Runs) -> list[Block]:
    values = [flatten(read_yaml(run.folder / "params.yaml")) for run in runs.values()]
    names = list(dict.fromkeys(name for parameters in values for name in parameters))
    rows = []
    for name in names:
        found = [parameters.get(name) for parameters in values]
        if any(value != found[0] for value in found):
            rows.append([name, *("" if value is None else shown(name, value) for value in found)])
    if not rows:
        return [Missing(message="All parameters are equal.")]
    command = f"dvc params diff {' '.join(runs)}" if len(runs) == 2 else "dvc exp show"
    return [Table(title="Parameters that differ", header=["parameter", *runs], rows=rows, command=command)]


def _curves(runs: Runs) -> list[Block]:
    curves: dict[str, History] = {name: run.curve for name, run in runs.items()}
    floors = {run.metrics("train").get("floor_bits_per_byte") for run in runs.values()}
    floor = floors.pop() if len(floors) == 1 else None  # that of different texts is not one line
    command = f"dvc plots diff {' '.join(runs)}"
    described = ", ".join(f"{name} to step {count(curve[-1]['step'])}" for name, curve in curves.items())
    return [
        Plot(
            name="losses",
            title="Loss",
            figure=plot(functools.partial(draw_losses, curves=curves)),
            alt=f"Loss over steps: {described}",
            command=command,
        ),
        Plot(
            name="bits-per-byte",
            title="Bits per byte",
            figure=plot(functools.partial(draw_bits_per_byte, curves=curves, floor=floor)),
            alt=f"Bits per byte over steps: {described}",
            command=command,
        ),
    ]


def _metrics(runs: Runs) -> list[Block]:
    blocks: list[Block] = []
    for stage in ("train", "evaluate"):
        file = METRICS[stage]
        if missing := [name for name, run in runs.items() if not (run.folder / "metrics" / file).is_file()]:
            blocks.append(Missing(message=f"{', '.join(missing)}: no metrics/{file}; make it with: dvc repro {stage}"))
            continue
        values = [run.metrics(stage) for run in runs.values()]
        names = list(dict.fromkeys(name for metrics in values for name in metrics))
        rows = [[name, *(f"{metrics[name]:.6g}" if name in metrics else "" for metrics in values)] for name in names]
        rows = [row for row in rows if len(set(row[1:])) > 1]
        command = f"dvc metrics diff {' '.join(runs)} --targets metrics/{file}"
        if rows:
            blocks.append(
                Table(title=f"Metrics of {stage} that differ", header=["metric", *runs], rows=rows, command=command)
            )
    return blocks or [Missing(message="All metrics are equal.")]


def _samples(runs: Runs) -> list[Block]:
    """The first sample of each."""
    blocks: list[Block] = []
    for name, run in runs.items():
        if run.has_samples:
            blocks.append(Text(title=name, text=run.samples[0].text, command="dvc repro sample"))
        else:
            blocks.append(
                Missing(title=name, message="Its samples are not in the cache; make them with: dvc repro sample")
            )
    return blocks
