"""The results of an ablation: one row per variant, size and number of tokens, as a data frame and as Markdown."""

import math
from collections.abc import Hashable
from typing import Any

import pandas as pd

from lm.errors import UserError, quote
from lm.studies.ablation.comparison import SIGNIFICANCE, comparison
from lm.studies.ablation.multiplier import MAX_EXTENSION, multiplier

PARTS = {
    "later_name_nats": "later mentions of names",
    "later_other_nats": "later mentions of other things",
    "wording_nats": "wording",
    "repeated_pair_nats": "repeated pairs",
    "new_pair_nats": "other tokens",
}
Row = dict[Hashable, Any]  # as DataFrame.to_dict("records") returns it

_COSTS = {"multiplier": "flops", "time_multiplier": "seconds"}
_TOLERANCE = 0.01  # of parameters and FLOPs, within which rows are fair
_CLAIM = 0.01  # the README claims only what has a p-value below this


def table(cells: pd.DataFrame) -> pd.DataFrame:
    """Compare every variant with the baseline, the first variant of `cells`, at every size and number of tokens.

    Args:
        cells: Training runs, as `lm.studies.cells_table.read_cells` returns them.

    Returns:
        One row per variant, size and number of tokens, grouped by size and tokens, and in the order of `cells` within a
        group. Losses are in bits per byte.

        - `variant`, `size`, `tokens`, `learning_rate`: what was trained.
        - `loss`: The mean over the seeds; `floor`: the entropy, NaN if it is unknown.
        - `difference`, `difference_low`, `difference_high`, `p_value`, `verdict`, `minimum_detectable_difference`,
          `pairs`: see `lm.studies.ablation.comparison.comparison`.
        - `num_parameters`, `flops`: of the model and of the whole training of one run.
        - `runs`: the number of runs; `diverged`: how many of them diverged. A row with such a run has no loss and no
          difference.
        - `multiplier`, `multiplier_low`, `multiplier_high`, `multiplier_bound`, `multiplier_extrapolated`: the compute
          multiplier (see `lm.studies.ablation.multiplier`), in the rows of the baseline's largest number of tokens at
          each size with several of them. `time_multiplier` and so on are the same for the seconds of training instead
          of FLOPs.
        - The means of the parts of the loss in `PARTS`, in nats per token, and of `tokens_per_second`, where `cells`
          has them.

    Raises:
        UserError: the runs of a row have different learning rates.
    """
    baseline = str(cells["variant"].iloc[0])
    cells = mask_diverged(cells)
    frames = []
    for _, group in cells.groupby(["size", "tokens"], sort=False):
        rows = [_summary(group[group["variant"] == variant]) for variant in group["variant"].unique()]
        frames.append(pd.DataFrame(rows).merge(comparison(group, baseline), on="variant"))
    frame = pd.concat(frames, ignore_index=True)
    for name, cost in _COSTS.items():
        if cost in cells:
            _add_multipliers(frame, cells, baseline, name, cost)
    return frame


def mask_diverged(cells: pd.DataFrame) -> pd.DataFrame:
    """The runs, with NaN for the loss and its parts where a run diverged.

    A run that diverged may have a finite loss, but it is that of an earlier model, while `tokens` and `flops` are those
    of the full run.
    """
    names = [name for name in ("loss", *PARTS) if name in cells]
    has_diverged = (cells["diverged"] == 1) | cells["loss"].isna()
    return cells.assign(**{name: cells[name].mask(has_diverged) for name in names})


def _summary(runs: pd.DataFrame) -> dict[str, object]:
    """What the runs of a row have in common, and their means."""
    first = runs.iloc[0]
    if len(rates := runs["learning_rate"].unique()) > 1:
        row = quote(f"{first['variant']}, {first['size']}, {first['tokens']} tokens")
        raise UserError(
            f"{row}: expected one learning rate, got {rates[0]:g} and {rates[1]:g}; choose the best one first"
        )
    means = {name: runs[name].mean(skipna=False) for name in [*PARTS, "tokens_per_second"] if name in runs}
    return {
        **{name: first[name] for name in ("variant", "size", "tokens", "learning_rate")},
        "loss": runs["loss"].mean(skipna=False),
        "floor": first["floor"],
        "num_parameters": first["parameters"],
        "flops": runs["flops"].mean(),
        "runs": len(runs),
        "diverged": int(runs["loss"].isna().sum()),
        **means,
    }


def _add_multipliers(frame: pd.DataFrame, cells: pd.DataFrame, baseline: str, name: str, cost: str) -> None:
    columns = [name, f"{name}_low", f"{name}_high", f"{name}_bound", f"{name}_extrapolated"]
    for column in columns:
        frame[column] = "" if column.endswith("_bound") else math.nan
    for (size, variant), runs in cells.groupby(["size", "variant"], sort=False):
        reference = cells[(cells["size"] == size) & (cells["variant"] == baseline)]
        if reference["tokens"].nunique() < 2:
            continue
        result = multiplier(reference, runs, cost)
        largest = (frame["size"] == size) & (frame["tokens"] == reference["tokens"].max())
        row = largest & (frame["variant"] == variant)
        if variant == baseline:
            frame.loc[row & frame["loss"].notna(), name] = 1.0
        elif result is not None:
            frame.loc[row, columns] = [
                result.value,
                result.low,
                result.high,
                result.bound,
                float(result.is_extrapolated),
            ]


def markdown(frame: pd.DataFrame) -> str:
    """The tables in GitHub's Markdown: for each size, the results at the largest number of tokens, how they develop
    over the numbers of tokens, and the parts of the loss, with notes on how to read them and on rows that are not fair.
    """
    baseline = str(frame["variant"].iloc[0])
    blocks = []
    for size, rows in frame.groupby("size", sort=False):
        final = longest_runs(rows, baseline)
        tokens = final["tokens"].iloc[0]
        blocks.append(f"**Size {size}, {tokens:,} tokens**")
        blocks.append(_results(final, baseline))
        if unfair := unfair_rows(final, baseline):
            blocks.append(f"Not matched to {baseline} within 1%: {unfair}.")
        if unpaired := _unpaired_rows(rows, baseline):
            blocks.append(f"Not every run has a pair: {unpaired}.")
        if rows["tokens"].nunique() > 1:
            blocks += [f"**Size {size}, over the numbers of tokens**", _over_tokens(rows, final)]
        if parts := _parts(final):
            blocks += [f"**Size {size}, {tokens:,} tokens, parts of the loss in nats per token**", parts]
    return "\n\n".join([*blocks, _notes(frame, baseline)]) + "\n"


def longest_runs(rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The rows of one size at the baseline's largest number of tokens, or at the largest of all if it has no runs."""
    reference = rows[rows["variant"] == baseline]
    return rows[rows["tokens"] == (rows if reference.empty else reference)["tokens"].max()]


def multiplier_text(row: Row, name: str = "multiplier") -> str:
    """A multiplier with its interval, such as `1.31 (1.20 to 1.43)`, `1.31*` or `< 0.25*`; empty if there is none.

    The star marks a loss that is reached only beyond the variant's own runs.
    """
    value = row.get(name, math.nan)
    if math.isnan(value):
        return ""
    sign = {"less than": "< ", "more than": "> "}.get(row[f"{name}_bound"], "")
    star = "*" if row[f"{name}_extrapolated"] == 1 else ""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{sign}{value:.2f}{star}" + ("" if math.isnan(low) else f" ({low:.2f} to {high:.2f})")


def _results(rows: pd.DataFrame, baseline: str) -> str:
    reference = _baseline_row(rows, baseline)
    has_speed = "tokens_per_second" in rows
    head = ["variant", "loss", "difference", "p", "verdict", "minimum detectable difference", "parameters", "FLOPs"]
    body = []
    for row in rows.to_dict("records"):
        p_value = p_value_text(row["p_value"])
        line = [
            row["variant"],
            _number(row["loss"], ".4f"),
            difference_text(row),
            f"**{p_value}**" if row["p_value"] < _CLAIM else p_value,
            row["verdict"],
            _number(row["minimum_detectable_difference"], ".4f"),
            f"{row['num_parameters']:,}",
            _number(_ratio(row, reference, "flops"), ".2f"),
        ]
        speed = [_number(_ratio(row, reference, "tokens_per_second"), ".2f")] if has_speed else []
        body.append([*line, *speed, f"{row['diverged']} of {row['runs']}"])
    return _grid(
        [*head, *(["tokens/s"] if has_speed else []), "diverged"], body, left=("variant", "verdict", "diverged")
    )


def _over_tokens(rows: pd.DataFrame, final: pd.DataFrame) -> str:
    """The difference at each number of tokens, and the multipliers."""
    counts = sorted(rows["tokens"].unique())
    names = {"multiplier": "compute multiplier", "time_multiplier": "time multiplier"}
    names = {name: title for name, title in names.items() if name in rows and rows[name].notna().any()}
    last = {row["variant"]: row for row in final.to_dict("records")}
    body = []
    for variant, group in rows.groupby("variant", sort=False):
        by_tokens: dict[int, Row] = {row["tokens"]: row for row in group.to_dict("records")}
        differences = [_development(by_tokens[tokens]) if tokens in by_tokens else "" for tokens in counts]
        body.append([str(variant), *differences, *(multiplier_text(last.get(variant, {}), name) for name in names)])
    return _grid(["variant", *(f"{tokens:,} tokens" for tokens in counts), *names.values()], body, left=("variant",))


def _development(row: Row) -> str:
    """The difference with its verdict, or the loss of the baseline."""
    if row["verdict"] == "baseline":
        return f"loss {row['loss']:.4f}"
    return ", ".join(filter(None, (_number(row["difference"], "+.4f"), row["verdict"])))


def _parts(rows: pd.DataFrame) -> str:
    names = [name for name in PARTS if name in rows and rows[name].notna().any()]
    body = [[row["variant"], *(_number(row[name], ".4f") for name in names)] for row in rows.to_dict("records")]
    return _grid(["variant", *(PARTS[name] for name in names)], body, left=("variant",)) if names else ""


def unfair_rows(rows: pd.DataFrame, baseline: str) -> str:
    """The variants whose parameters or FLOPs differ from the baseline's by more than the tolerance, and by how much."""
    reference = _baseline_row(rows, baseline)
    found = []
    for row in rows.to_dict("records"):
        excess = {
            "parameters": _ratio(row, reference, "num_parameters") - 1,
            "FLOPs": _ratio(row, reference, "flops") - 1,
        }
        if changes := [f"{name} {value:+.1%}" for name, value in excess.items() if abs(value) > _TOLERANCE]:
            found.append(f"{row['variant']} ({', '.join(changes)})")
    return ", ".join(found)


def _unpaired_rows(rows: pd.DataFrame, baseline: str) -> str:
    incomplete = rows[(rows["pairs"] < rows["runs"]) & (rows["variant"] != baseline)]
    return ", ".join(
        f"{row['variant']} at {row['tokens']:,} tokens ({row['pairs']} of {row['runs']})"
        for row in incomplete.to_dict("records")
    )


def _notes(frame: pd.DataFrame, baseline: str) -> str:
    pairs = sorted(set(frame["pairs"]))
    floor = frame["floor"].iloc[0]
    notes = [
        "Loss: bits per byte on whole documents"
        + ("." if math.isnan(floor) else f"; the entropy of the text is {floor:.4f}."),
        f"Difference: variant minus {baseline}, mean over pairs of runs with the same seed (number of pairs: "
        f"{' or '.join(map(str, pairs))}), with its 95% t-interval.",
    ]
    if frame["p_value"].notna().any():
        notes += [
            "p: two-sided paired t-test, after Holm's correction over the rows of a size and number of tokens. The "
            f"verdict needs p < {SIGNIFICANCE}. The interval is not corrected, so it may exclude 0 where the verdict "
            "shows no difference.",
            f"The README claims only what has p < {_CLAIM} (in bold).",
            "Minimum detectable difference: the true difference that a single paired test at 5% with this many seeds "
            "detects with a probability of 80%, given the standard deviation of these differences. After Holm's "
            "correction, a verdict needs a larger one. The interval says how large an effect may still be.",
        ]
    speeds = "FLOPs and tokens/s are" if "tokens_per_second" in frame else "FLOPs are"
    notes.append(f"{speeds} relative to {baseline}.")
    if "multiplier" in frame and frame["multiplier"].notna().any():
        excess = "the loss, because its floor is unknown" if math.isnan(floor) else "the loss minus the entropy"
        notes += [
            f"Compute multiplier: the FLOPs of {baseline} at its largest number of tokens, divided by the FLOPs that "
            "the variant needs for the same loss. Above 1, the variant needs less. It is interpolated on logarithmic "
            f"axes over {excess}. A star marks a loss that is reached only beyond the variant's own runs, < a loss "
            f"that is not reached even with {MAX_EXTENSION:g} times its largest FLOPs, and > a loss that is already "
            "reached at its smallest number of tokens.",
        ]
    if "time_multiplier" in frame and frame["time_multiplier"].notna().any():
        notes.append("Time multiplier: the same for the seconds of training instead of FLOPs.")
    return "\n".join(f"- {note}" for note in notes)


def difference_text(row: Row) -> str:
    """The difference with its interval, such as `+0.1273 (+0.0803 to +0.1743)`; empty for the baseline."""
    if row["verdict"] == "baseline":
        return ""
    low, high = row["difference_low"], row["difference_high"]
    return _number(row["difference"], "+.4f") + ("" if math.isnan(low) else f" ({low:+.4f} to {high:+.4f})")


def p_value_text(value: float) -> str:
    """A p-value, such as `0.0364` or `< 0.0001`; empty if there is none."""
    return "< 0.0001" if value < 0.0001 else _number(value, ".4f")


def _baseline_row(rows: pd.DataFrame, baseline: str) -> Row:
    """The baseline's row among those of one size and number of tokens, empty if it has none."""
    return next((row for row in rows.to_dict("records") if row["variant"] == baseline), {})


def _ratio(row: Row, reference: Row, name: str) -> float:
    return row[name] / reference.get(name, math.nan)


def _number(value: float, style: str) -> str:
    return "" if math.isnan(value) else format(value, style)


def _grid(head: list[str], body: list[list[str]], left: tuple[str, ...]) -> str:
    """A table in Markdown whose columns are aligned to the right, apart from `left`."""
    lines = [head, ["---" if name in left else "---:" for name in head], *body]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
