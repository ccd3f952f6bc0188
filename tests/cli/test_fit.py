import json
import os
import sys
from contextlib import suppress

import numpy as np
import pytest

from lm.cli.main import main
from lm.studies.scaling.law import Law

LAW = Law(A=60, B=700, E=0.75, alpha=0.5, beta=0.45)
ROWS = [
    f"{N:.0f},{D:.0f},{LAW.loss(round(N), round(D)):.12f}"
    for N in np.geomspace(3e4, 3e6, 4)
    for D in np.geomspace(1e6, 6e7, 4)
]


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    """Run `lm fit` on a table; returns what it prints, and its errors."""
    monkeypatch.chdir(tmp_path)

    def fit(rows: list[str], *arguments: str, header: str = "parameters,tokens,loss") -> tuple[str, str]:
        (tmp_path / "runs.csv").write_text("\n".join([header, *rows]) + "\n")
        monkeypatch.setattr(sys, "argv", ["lm", "fit", "runs.csv", "--bootstraps", "100", *arguments])
        with suppress(SystemExit):
            main()
        return capsys.readouterr()

    return fit


def test_the_law_is_printed_written_and_drawn(fit, tmp_path):
    said, errors = fit(ROWS, "--json", "fit.json", "--picture", "fit.png")
    assert not errors
    assert "E          0.75          95% interval 0.75 to 0.75\n" in said and "objective  " in said
    content = json.loads((tmp_path / "fit.json").read_text())
    for name in ("A", "B", "E", "alpha", "beta"):
        assert content[name] == pytest.approx(getattr(LAW, name), rel=1e-6)
        assert content["intervals"][name] == [pytest.approx(getattr(LAW, name), rel=1e-3)] * 2
    assert content["objective"] < 1e-15 and content["irreducible"] is None
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_folders_are_made_for_the_files(fit, tmp_path):
    _, errors = fit(ROWS, "--json", "out/new/fit.json")
    assert not errors and (tmp_path / "out/new/fit.json").exists()


def test_the_same_table_gives_the_same_file(fit, tmp_path):
    rows = [f"{row[:-9]}{digit}" for row, digit in zip(ROWS, "1234567890123456")]
    files = []
    for name in ("a.json", "b.json"):
        fit(rows, "--json", name)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


def test_a_known_e_is_not_fitted(fit):
    said, _ = fit(ROWS, "--irreducible", "0.7")
    assert "E          0.7           given\n" in said


def test_runs_without_a_loss_are_named(fit):
    rows = [f"{row},0" for row in ROWS] + ["1e6,1e7,0.9,1", "1e6,2e7,,0", "1e6,3e7,nan,0", "1e6,3e7,inf,0"]
    rows += ["1e6,4e7,0.9,1.0", f"{ROWS[0]},0.0"]  # as pandas writes a column with a missing value
    said, errors = fit(rows, header="parameters,tokens,loss,diverged")
    unusable = "run 18 (no finite loss), run 19 (no finite loss), run 20 (no finite loss)"
    left_out = f"run 17 (diverged), {unusable}, run 21 (diverged)"
    assert said.startswith(f"left out: {left_out}\n") and not errors
    assert "E          0.75 " in said


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (ROWS, "parameters,steps,loss", "expected the column tokens, got 'parameters, steps, loss'; give a CSV file"),
        (["1,2,many"], "parameters,tokens,loss", "run 1, loss: expected a positive number, got 'many'; correct it"),
        (["1,2,3", "0,2,3"], "parameters,tokens,loss", "run 2, parameters: expected a positive number, got '0'"),
        (["1,,3"], "parameters,tokens,loss", "run 1, tokens: expected a positive number, got ''"),
        (["1,2,-3"], "parameters,tokens,loss", "run 1, loss: expected a positive number, got '-3'"),
        (
            [*ROWS[:3], "1,2,3,4"],
            "parameters,tokens,loss",
            "not a table in CSV format (Expected 3 fields in line 5, saw 4)",
        ),
        (
            ["1;2;3"],
            "parameters;tokens;loss",
            "expected the column parameters, got 'parameters;tokens;loss'; give a CSV ",
        ),
        (["1,2,3,4"], "parameters,tokens,loss,loss", "expected one column loss, got 2; delete or rename the others"),
        (["1,2,3,0,1"], "parameters,tokens,loss,diverged,diverged", "expected one column diverged, got 2; delete or"),
        (["1e-320,2,3"], "parameters,tokens,loss", "run 1, parameters: expected 1e-30 to 1e+30, got '1e-320'; correct"),
        (["1,2,1e300"], "parameters,tokens,loss", "run 1, loss: expected 1e-30 to 1e+30, got '1e300'; correct it"),
        (
            [row.rpartition(",")[0] + ",2" for row in ROWS],
            "parameters,tokens,loss",
            "loss: expected different values, got 2 for all runs; add runs with other losses",
        ),
        (["1,2,3,maybe"], "parameters,tokens,loss,diverged", "run 1, diverged: expected 0 or 1, got 'maybe'"),
        ([], "parameters,tokens,loss", "parameters: expected 3 or more different values for a fit of A, B, E, alpha"),
        (ROWS[:4], "parameters,tokens,loss", "parameters: expected 3 or more different values for a fit of A, B, E"),
        (
            ROWS[::4],
            "parameters,tokens,loss",
            "tokens: expected 3 or more different values for a fit of A, B, E, alpha",
        ),
        (ROWS[::5], "parameters,tokens,loss", "runs: expected 6 or more that differ in parameters or tokens for a fit"),
    ],
)
def test_a_table_that_cannot_be_fitted_is_refused_in_one_line(fit, rows, header, message):
    said, errors = fit(rows, header=header)
    assert errors.startswith(f"error: runs.csv: {message}") and len(errors.splitlines()) == 1 and not said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--irreducible", "5"], "runs.csv: irreducible loss: expected 0 or more and less than the lowest loss, "),
        (["--irreducible", "nan"], "runs.csv: irreducible loss: expected 0 or more and less than the lowest loss, "),
        (["--bootstraps", "0"], "--bootstraps: expected 100 to 1,000,000, got 0"),
        (["--json", "runs.csv/fit.json"], "runs.csv: cannot be written"),
        (["--json", "."], "--json: expected a file, got the folder .; choose another path"),
        (["--json", "./runs.csv"], "--json: expected another file than that of the runs, got runs.csv; choose another"),
        (["--json", "a", "--picture", "./a"], "--picture: expected another file than that of --json, got a; choose"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(fit, arguments, message):
    said, errors = fit(ROWS, *arguments)
    assert errors.startswith(f"error: {message}") and len(errors.splitlines()) == 1 and not said


def test_a_pipe_is_not_replaced_by_a_file(fit, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    said, errors = fit(ROWS, "--picture", "pipe")
    assert (
        errors == "error: --picture: expected a file, got the device or pipe pipe; choose another path\n" and not said
    )


def test_the_table_may_come_from_a_spreadsheet(fit, tmp_path):
    (expected, _) = fit(ROWS)
    said, errors = fit([row.replace(",", ", ") + "\r" for row in ROWS], header="\ufeffparameters, tokens, loss\r")
    assert said == expected and not errors


def test_an_exponent_that_the_runs_do_not_determine_is_said(fit):
    rows = [f"{N},{D},{1 + N / 1e5 + D / 1e6}" for N in (1e4, 1e5, 1e6) for D in (1e6, 3e6, 1e7)]  # it rises
    said, errors = fit(rows)
    assert "which ended at a limit of the search, 0.01 to 5: do not use this fit for predictions." in said
    assert not errors
