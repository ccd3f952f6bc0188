import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lm.errors import UserError
from lm.studies.scaling.files import read_fit
from lm.studies.scaling.forecasts import most_expensive
from lm.studies.scaling.picture import scaling_picture
from lm.studies.scaling.study import Study, analyze_cells
from lm.studies.scaling.table import markdown
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
                    "data": "c6e7a1",
                    "tokens": tokens,
                    "learning_rate": 0.01,
                    "seed": 1,
                    "parameters": blocks + 2 * head,
                    "parameters_without_embeddings": blocks + head,
                    "parameters_of_blocks": blocks,
                    "flops": 9 * (blocks + head) * tokens,  # with the scores of attention
                    "diverged": 0,
                    "loss": loss * np.exp(noise * generator.standard_normal()),
                    "floor": floor,
                }
            )
    return pd.DataFrame(rows).assign(**changes)


@pytest.fixture
def run_stage(tmp_path, monkeypatch):
    """Run the stage on a table; returns its fits and its tables."""
    monkeypatch.setattr(scaling_law, "BOOTSTRAPS", 20)

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
    assert "The entropy of the text is 0.5430 bits per byte; it is E if the context holds whole documents." in tables
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


@pytest.fixture(scope="module")
def study() -> Study:
    """A study of a text whose entropy is not known."""
    return analyze_cells(cells([16, 32, 64, 128], noise=0, floor=np.nan), 2)


def test_where_the_entropy_is_unknown_e_is_fitted(study):
    assert study.entropy is None and not study.known
    assert study.main.irreducible is None and pytest.approx(FLOOR, rel=1e-5) == study.main.fit.law.E
    assert "The entropy of the text is not known" in markdown(study)


def test_the_flops_leave_out_the_scores_of_attention_which_are_in_the_column_of_the_table(study):
    assert study.main.runs.flops.max() == 6 * (12 * 128**2 + 512 * 128) * 409600


def test_a_study_is_drawn(study, tmp_path):
    scaling_picture(study, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


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
    with pytest.raises(UserError) as error:
        read_fit(tmp_path / "fit.json")
    assert str(error.value).startswith(f"{tmp_path / 'fit.json'}: holds no law: {reason}")


@pytest.mark.parametrize("widths", [[16, 32], [16, 32, 64]])
def test_a_floor_above_a_loss_is_an_error_of_the_data(run_stage, tmp_path, widths):
    table = cells(widths, floor=2.0)
    assert (table["loss"] < 2).any() and (table["loss"] > 2).any()
    with pytest.raises(
        UserError, match="cells.csv: irreducible loss: expected 0 or more and less than the lowest loss"
    ):
        run_stage(table)
    assert not list(Path(tmp_path / "metrics").iterdir())


def test_the_same_runs_are_held_out_for_every_count_of_parameters(study):
    first, *others = (analysis.held_out.future.loss.tolist() for analysis in study.free.values())
    assert others == [first, first]
    by_themselves = {tuple(most_expensive(analysis.runs)) for analysis in study.free.values()}
    assert len(by_themselves) > 1


def test_cells_of_several_variants_are_refused(run_stage, tmp_path):
    with pytest.raises(UserError) as error:
        run_stage(cells([16, 32, 64], variant=["a"] * 5 + ["b"] * 4))
    message = "variant: expected cells of one variant, got a, b; fit each one by itself"
    assert str(error.value) == f"{tmp_path / 'cells.csv'}: {message}"
    assert not list(Path(tmp_path / "metrics").iterdir())
