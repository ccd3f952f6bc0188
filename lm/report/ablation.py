"""The section on the ablation: what each design choice does to the loss, and how certain that is."""

import math
from collections import Counter

import pandas as pd
from matplotlib.figure import Figure

from lm.report.blocks import Block, Plot, Section, Table
from lm.report.numbers import count
from lm.report.run import Run
from lm.studies.ablation.comparison import SIGNIFICANCE
from lm.studies.ablation.forest import add_verdicts, draw_forest, draw_losses, panel_height
from lm.studies.ablation.table import difference_text, longest_runs, p_value_text, unfair_rows

_COMMAND = "dvc repro ablation_table"
_WIDTH = 5.2  # of a figure, in inches

# What is said of one variant with a verdict, and of several.
_VERBS = {
    "better": ("is better", "are better"),
    "worse": ("is worse", "are worse"),
    "no difference shown": ("shows no difference", "show no difference"),
    "one seed": ("has one seed only", "have one seed only"),
    "no pair": ("has no pair of runs", "have no pair of runs"),
    "diverged": ("diverged", "diverged"),
    "baseline diverged": ("has a baseline that diverged", "have a baseline that diverged"),
}


def _longest_runs(run: Run) -> tuple[str, list[pd.DataFrame]]:
    """The baseline, and for each size the rows of the table at the largest number of tokens."""
    frame = run.ablation_table
    baseline = str(frame["variant"].iloc[0])
    return baseline, [longest_runs(rows, baseline) for _, rows in frame.groupby("size", sort=False)]


def _finding(run: Run) -> str:
    baseline, sizes = _longest_runs(run)
    parts: list[str] = []
    for rows in sizes:
        verdicts = rows[rows["variant"] != baseline]["verdict"]
        numbers = Counter(verdicts)
        phrases = [f"{numbers[name]} {verbs[numbers[name] > 1]}" for name, verbs in _VERBS.items() if name in numbers]
        if phrases:
            of_size = f" of size {rows['size'].iloc[0]}" if len(sizes) > 1 else ""
            plural = "s" if len(verdicts) > 1 else ""
            parts.append(f"{'of' if parts else 'Of'} {len(verdicts)} variant{plural}{of_size}, {_enumeration(phrases)}")
    if not parts:
        return f"There is no variant to compare with {baseline}."
    return f"{'; '.join(parts)}, compared with {baseline} at p < {SIGNIFICANCE}."


def _enumeration(phrases: list[str]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))


def _results(run: Run) -> list[Block]:
    """For each size, the forest plot, the loss by FLOPs if the runs have several numbers of tokens, and the table."""
    cells = run.ablation_cells
    baseline, sizes = _longest_runs(run)
    blocks: list[Block] = []
    for index, rows in enumerate(sizes):
        of_size = cells[cells["size"] == rows["size"].iloc[0]]
        if len(rows) > 1:
            blocks.append(_forest(f"ablation-{index}", rows, baseline))
        if of_size["tokens"].nunique() > 1:
            blocks.append(_losses(f"ablation-losses-{index}", of_size, baseline))
        blocks.append(_table(rows, baseline))
    return blocks


def _forest(name: str, rows: pd.DataFrame, baseline: str) -> Plot:
    figure = Figure(figsize=(_WIDTH, panel_height(len(rows))), layout="constrained")
    draw_forest(figure.subplots(), rows, baseline)
    add_verdicts(figure, rows)
    described = [
        ", ".join(filter(None, (row["variant"], difference_text(row), row["verdict"])))
        for row in rows.to_dict("records")
        if row["variant"] != baseline
    ]
    return Plot(
        name=name,
        title=f"Difference from {baseline}, size {rows['size'].iloc[0]}, {count(rows['tokens'].iloc[0])} tokens",
        figure=figure,
        alt=f"Loss minus that of {baseline} in bits per byte, with 95% intervals: {'; '.join(described)}",
        note=f"Mean differences over pairs of runs with the same seed, with their 95% intervals. A verdict needs p < "
        f"{SIGNIFICANCE} after Holm's correction for the number of variants.",
        command=_COMMAND,
    )


def _losses(name: str, cells: pd.DataFrame, baseline: str) -> Plot:
    figure = Figure(figsize=(_WIDTH, panel_height(cells["variant"].nunique())), layout="constrained")
    draw_losses(figure.subplots(), cells, baseline)
    return Plot(
        name=name,
        title=f"Loss by the FLOPs of the training, size {cells['size'].iloc[0]}",
        figure=figure,
        alt=f"The loss of {cells['variant'].nunique()} variants over the FLOPs of trainings with "
        f"{count(cells['tokens'].min())} to {count(cells['tokens'].max())} tokens",
        command=_COMMAND,
    )


def _table(rows: pd.DataFrame, baseline: str) -> Table:
    flops = rows["flops"][rows["variant"] == baseline]
    body = [
        [
            row["variant"],
            "" if math.isnan(row["loss"]) else f"{row['loss']:.4f}",
            difference_text(row),
            p_value_text(row["p_value"]),
            row["verdict"],
            count(row["num_parameters"]),
            f"{row['flops'] / flops.iloc[0]:.2f}" if len(flops) else "",
            f"{row['diverged']} of {row['runs']}",
        ]
        for row in rows.to_dict("records")
    ]
    unfair = unfair_rows(rows, baseline)
    return Table(
        title=f"Size {rows['size'].iloc[0]}, {count(rows['tokens'].iloc[0])} tokens",
        header=("variant", "loss", "difference", "p", "verdict", "parameters", "FLOPs", "diverged"),
        rows=body,
        note=f"The loss is in bits per byte on whole documents, and FLOPs are relative to {baseline}."
        + (f" Not matched to {baseline} within 1%: {unfair}." if unfair else ""),
        command=_COMMAND,
    )


ABLATION = Section("ablation", "Ablation", _finding, [_results])
