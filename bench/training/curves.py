"""What the trainings of the time-to-loss benchmark show: a CSV file, a picture, a table, and one sentence."""

import csv
import io
from pathlib import Path
from typing import Any

from bench.common.tables import OURS

Training = dict[str, Any]  # a result of bench.training.measure_curve, with the settings of the training


def curves_csv(trainings: list[Training]) -> str:
    """Return a CSV with one row per evaluation."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["system", "learning_rate", "step", "seconds", "val_bits_per_byte"])
    for training in trainings:
        for point in training["curve"]:
            values = [point["step"], f"{point['seconds']:.2f}", f"{point['val_bits_per_byte']:.5f}"]
            writer.writerow([training["system"], training["learning_rate"], *values])
    return text.getvalue()


def seconds_to(curve: list[dict[str, float]], bits_per_byte: float) -> float | None:
    """Return when a curve first reaches a value, interpolating between two evaluations; None if it never does.

    Example: a curve falls from 2.0 bits per byte at 10 s to 1.0 at 20 s, so it reaches 1.5 at 15 s.
    """
    before = None
    for point in curve:
        if point["val_bits_per_byte"] <= bits_per_byte:
            if before is None:
                return point["seconds"]
            fall = before["val_bits_per_byte"] - point["val_bits_per_byte"]
            share = (before["val_bits_per_byte"] - bits_per_byte) / fall
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return None


def report(trainings: list[Training]) -> list[str]:
    """Return the lines of a table with one row per training, and a sentence that compares ours with the best other."""
    columns = ["system", "learning rate", "batch size", "compiled", "attention", "parameters", "steps", "seconds"]
    columns += ["first step, s", "val bits per byte"]
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for training in trainings:
        last = training["curve"][-1]
        cells = [training["system"], f"{training['learning_rate']:g}", training["batch_size"], training["compile"]]
        cells += [training["attention"], f"{training['parameters']:,}", training["steps"], f"{last['seconds']:.0f}"]
        cells += [f"{training['first_step_seconds']:.1f}", f"{last['val_bits_per_byte']:.4f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    ours = [training for training in trainings if training["system"] == OURS]
    others = [training for training in trainings if training["system"] != OURS]
    return [*lines, "", _comparison(ours, others)] if ours and others else lines


def _comparison(ours: list[Training], others: list[Training]) -> str:
    best = min(others, key=lambda training: training["curve"][-1]["val_bits_per_byte"])
    end = best["curve"][-1]
    times = [seconds_to(training["curve"], end["val_bits_per_byte"]) for training in ours]
    reached = min((seconds for seconds in times if seconds is not None), default=None)
    ending = f"{best['system']} at {best['learning_rate']:g}, ends at {end['val_bits_per_byte']:.4f} bits per byte"
    if reached is None:
        lowest = min(training["curve"][-1]["val_bits_per_byte"] for training in ours)
        return f"The best of the others, {ending}; ours ends at {lowest:.4f}."
    return f"The best of the others, {ending}; ours reaches that in {reached / end['seconds']:.2f} of its time."


def draw(trainings: list[Training], path: Path) -> None:
    """Plot bits per byte over seconds, ours with thick solid lines, the others with thin dashed ones."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for training in trainings:
        seconds = [point["seconds"] for point in training["curve"]]
        bits = [point["val_bits_per_byte"] for point in training["curve"]]
        is_ours = training["system"] == OURS
        setting = f"{training['steps']} steps" if is_ours else f"{training['learning_rate']:g}"
        width, style = (2.5, "-") if is_ours else (1.0, "--")
        axes.plot(seconds, bits, label=f"{training['system']}, {setting}", linewidth=width, linestyle=style)
    axes.set(xlabel="seconds of training", ylabel="val bits per byte")
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
