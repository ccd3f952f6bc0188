import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lm.errors import UserError
from lm.studies.scaling.files import read_fit
from stages import scaling_law

FLOOR = 0.543
NAMES = ("A", "B", "E", "alpha", "beta")


def cells(widths: list[int], noise: float = 0.003, floor: float | str = FLOOR, **changes) -> pd.DataFrame:
    """A grid of one-layer models with losses from a law in the parameters of blocks and head."""
    generator = np.random.default_rng(0)
    rows = []
    for width in widths:
        for tokens in (102400, 204800, 409600):
            blocks, head = 12 * width**2, 512 * width
            loss = FLOOR + 20 * (blocks + head) ** -0.45 + 1200 * tokens**-0.55
            rows.append(
                {
                    "variant": "muon",
                    "size": f"{width}x1",
                    "tokens": tokens,
                    "learning_rate": 0.01,
                    "seed": 1,
                    "parameters": blocks + 2 * head,
                    "parameters_without_embeddings": blocks + head,
                    "parameters_of_blocks": blocks,
                    "flops": 6 * (blocks + head) * tokens,
                    "diverged": 0,
                    "loss": loss * np.exp(noise * generator.standard_normal()),
                    "floor": floor,
                }
            )
    return pd.DataFrame(rows).assign(**changes)


@pytest.fixture
def run_stage(tmp_path, monkeypatch):
    """Run the stage on a table; returns its fits and its tables."""
    monkeypatch.setattr(scaling_law, "BOOTSTRAPS", 100)

    def run_stage(table: pd.DataFrame) -> tuple[dict, str]:
        table.to_csv(tmp_path / "cells.csv", index=False)
        paths = {name: tmp_path / "metrics" / name for name in ("scaling.json", "scaling.md", "scaling.png")}
        flags = [flag for pair in zip(("--fit", "--table", "--picture"), map(str, paths.values())) for flag in pair]
        monkeypatch.setattr(sys, "argv", ["scaling_law", "--cells", str(tmp_path / "cells.csv"), *flags])
        scaling_law.main()
        assert paths["scaling.png"].read_bytes().startswith(b"\x89PNG")
        read_fit(paths["scaling.json"])
        return json.loads(paths["scaling.json"].read_text()), paths["scaling.md"].read_text()

    return run_stage


@pytest.mark.slow
def test_nine_cells_are_fitted_with_every_count_of_parameters(run_stage, capsys):
    fits, tables = run_stage(cells([16, 32, 64]))
    assert len(fits["fits"]) == 6
    assert fits["E"] == fits["irreducible"] == FLOOR
    assert {name: fits[name] for name in NAMES} == {
        name: fits["fits"]["parameters_without_embeddings, E known"][name] for name in NAMES
    }
    assert "The true E is the entropy of the text, 0.5430 bits per byte." in tables
    assert "There are too few sizes to predict one from the smaller ones with E fitted." in tables
    assert "No run is left out of the fits." in tables
    assert capsys.readouterr().out == tables + "\n"


@pytest.mark.slow
def test_without_noise_the_fit_that_counts_blocks_and_head_finds_the_truth(run_stage):
    fits, tables = run_stage(cells([16, 32, 64, 128], noise=0))
    free = fits["fits"]["parameters_without_embeddings, E free"]
    assert [free[name] for name in NAMES] == [pytest.approx(value, rel=1e-5) for value in (20, 1200, FLOOR, 0.45, 0.55)]
    row = "| parameters of blocks and head | fitted | 9 | 3 |"
    (errors,) = (line.removeprefix(row) for line in tables.splitlines() if line.startswith(row))
    assert errors.replace("-", "+") == " +0.00% | 0.00% | +0.00% |"


def test_where_the_entropy_is_unknown_e_is_fitted(run_stage):
    fits, tables = run_stage(cells([16, 32, 64], floor=""))
    assert fits["irreducible"] is None and len(fits["fits"]) == 3
    assert "The entropy of the text is not known" in tables


@pytest.mark.slow
def test_runs_that_are_left_out_are_named(run_stage):
    table = cells([16, 32, 64, 128])
    table.loc[0, "diverged"] = 1
    table.loc[4, "loss"] = np.nan
    _, tables = run_stage(table)
    expected = "16x1, 102,400 tokens, seed 1, which diverged; 32x1, 204,800 tokens, seed 1, which has no finite loss"
    assert f"Left out of the fits: {expected}.\n" in tables


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (
            cells([16, 32]),
            "parameters: expected 3 or more different values for a fit of A, B, E, alpha and beta, got 2",
        ),
        (
            cells([16, 32], diverged=1),
            "parameters: expected 3 or more different values for a fit of A, B, E, alpha and",
        ),
    ],
)
def test_runs_that_do_not_determine_a_law_are_a_result_that_says_so(tmp_path, monkeypatch, table, reason):
    table.to_csv(tmp_path / "cells.csv", index=False)
    flags = [f"--fit={tmp_path / 'fit.json'}", f"--table={tmp_path / 'fit.md'}", f"--picture={tmp_path / 'fit.png'}"]
    monkeypatch.setattr(sys, "argv", ["scaling_law", "--cells", str(tmp_path / "cells.csv"), *flags])
    scaling_law.main()
    assert (tmp_path / "fit.md").read_text().startswith(f"No law is fitted: {reason}")
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="fit.json: A: missing key"):
        read_fit(tmp_path / "fit.json")


def test_cells_of_several_variants_are_refused(run_stage, tmp_path):
    with pytest.raises(UserError) as error:
        run_stage(cells([16, 32, 64], variant=["a"] * 5 + ["b"] * 4))
    message = "variant: expected cells of one variant, got a, b; fit each one by itself"
    assert str(error.value) == f"{tmp_path / 'cells.csv'}: {message}"
    assert not list(Path(tmp_path / "metrics").iterdir())
