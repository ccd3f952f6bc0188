"""Collect the results of all cells of a grid in one table, the file that `lm.studies.cells_table` reads."""

import itertools
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lm.schema import read_json
from lm.studies.cells_table import OPTIONAL_COLUMNS
from lm.studies.config import GridConfig, Point, StudyConfig, parse_point

ADVICE = "train the cells first: dvc repro"


class Run(NamedTuple):
    """A run of a grid, and the name of its files."""

    name: str
    variant: str
    point: Point
    seed: int


def grid_runs(grid: GridConfig, variants: list[str]) -> list[Run]:
    """All runs of a grid in the order of the table."""
    return [
        Run(f"{variant}-{point}-{seed}", variant, parse_point(point), seed)
        for variant, point, seed in itertools.product(variants, grid.points, grid.seeds)
    ]


def sweep_runs(study: StudyConfig) -> list[Run]:
    """All runs of a study's sweep, which use its first seed."""
    return [
        Run(f"{variant}-{point}-{rate}", variant, parse_point(point), study.seeds[0])
        for variant, point, rate in itertools.product(study.run, study.sweep.points, study.sweep.learning_rates)
    ]


def collect(folder: Path, runs: list[Run]) -> pd.DataFrame:
    """One row per run, from the files NAME.json and, where there is one, NAME.timing.json in `folder`.

    The loss is that of whole documents in bits per byte. It is empty if it is not finite.

    Raises:
        UserError: a file is missing or damaged.
    """
    rows = []
    for run in runs:
        metrics = read_json(folder / f"{run.name}.json", dict[str, float], ADVICE)
        timing_path = folder / f"{run.name}.timing.json"
        timing = read_json(timing_path, dict[str, float], ADVICE) if timing_path.exists() else {}
        rows.append(
            {
                "variant": run.variant,
                "size": run.point.size,
                "tokens": run.point.budget,
                "learning_rate": metrics.get("learning_rate"),
                "seed": run.seed,
                "parameters": metrics.get("num_parameters"),
                "parameters_without_embeddings": metrics.get("num_parameters_without_embeddings"),
                "parameters_of_blocks": metrics.get("num_parameters_of_blocks"),
                "flops": metrics.get("flops"),
                "diverged": metrics.get("diverged"),
                "loss": metrics.get("document_bits_per_byte"),
                "floor": metrics.get("floor_bits_per_byte"),
                **{name: metrics.get(name, timing.get(name)) for name in OPTIONAL_COLUMNS},
            }
        )
    table = pd.DataFrame(rows)
    for name in ("parameters", "parameters_without_embeddings", "parameters_of_blocks", "diverged"):
        table[name] = table[name].astype("Int64")  # whole numbers, also where one is missing
    unknown = [name for name in OPTIONAL_COLUMNS if name in table and table[name].isna().all()]
    return table.drop(columns=unknown)
