import json
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from lm.cli.main import main
from lm.studies.scaling.analysis import analyze
from lm.studies.scaling.files import saved, write_fit
from lm.studies.scaling.forecasts import most_expensive
from lm.studies.scaling.law import Law
from lm.studies.scaling.runs import Runs

LAW = Law(A=400, B=1000, E=1.5, alpha=0.5, beta=0.5)  # D_opt = 6.25 N, C = 37.5 N²


@pytest.fixture(scope="module")
def fit_file(tmp_path_factory) -> Path:
    N, D = (values.ravel() for values in np.meshgrid(np.geomspace(1e4, 1e6, 4), np.geomspace(1e5, 1e7, 4)))
    runs = Runs(N, D, np.asarray(LAW.loss(N, D)))
    path = tmp_path_factory.mktemp("fit") / "fit.json"
    write_fit(path, asdict(saved(analyze(runs, None, 100, most_expensive(runs)), "parameters", "nats per token")))
    return path


@pytest.fixture
def predict(fit_file, monkeypatch, capsys):
    """Run `lm predict` on the fit; returns the lines that it prints, and its errors."""

    def predict(*arguments: str, fit: Path = fit_file) -> tuple[list[str], str]:
        monkeypatch.setattr(sys, "argv", ["lm", "predict", "--fit", str(fit), *arguments])
        with suppress(SystemExit):
            main()
        said, errors = capsys.readouterr()
        return said.splitlines(), errors

    return predict


def test_the_best_run_for_its_flops(predict):
    lines, errors = predict("--flops", "37.5e10")
    assert not errors
    assert lines[0] == "parameters             100,000  95% interval 100,000 to 100,000"
    assert lines[1] == "tokens                 625,000  95% interval 625,000 to 625,000"
    assert lines[2] == "FLOPs                 3.75e+11  given"
    assert lines[3].startswith("loss, nats per token    4.0298  95% interval 4.0298 to 4.0298")
    assert lines[5] == "Within the range of the 16 runs of the fit."
    assert lines[6].startswith(
        "Earlier forecasts, of the 4 most expensive runs from the cheaper ones, had a mean absolute error of 0.00%"
    )


@pytest.mark.parametrize(
    ("arguments", "parameters", "tokens", "loss"),
    [
        (["--parameters", "1e5"], "100,000", "625,000", "4.0298"),
        (["--tokens", "625000"], "100,000", "625,000", "4.0298"),
        (["--loss", "2.3"], "1,000,000", "6,250,000", "2.3000"),
        (["--parameters", "1e4", "--tokens", "1e6"], "10,000", "1,000,000", "6.5000"),
    ],
)
def test_what_is_not_given_is_optimal(predict, arguments, parameters, tokens, loss):
    lines, _ = predict(*arguments)
    assert [lines[0].split()[1], lines[1].split()[1], lines[3].split()[4]] == [parameters, tokens, loss]


def test_flops_that_follow_from_what_is_given_are_not_given(predict):
    lines, _ = predict("--parameters", "1e4", "--tokens", "1e6")
    assert [line.split("  ")[-1] for line in lines[:3]] == ["given", "given", "6 N D"]


def test_an_extrapolation_says_how_far_it_goes(predict):
    lines, _ = predict("--parameters", "1e3", "--tokens", "1e8")
    assert lines[5] == (
        "This extrapolates beyond the 16 runs of the fit: parameters 10 times below the smallest of the fit "
        "(1e+04), tokens 10 times above the largest of the fit (1e+07)."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "arguments: expected one of --flops, --parameters, --tokens and --loss, or --parameters with",
        ),
        (
            ["--flops", "1e9", "--loss", "2"],
            "arguments: expected one of --flops, --parameters, --tokens and --loss, or",
        ),
        (["--flops", "0"], "--flops: expected a positive number, got 0"),
        (["--tokens", "inf"], "--tokens: expected a positive number, got inf"),
        (["--tokens", "1e300"], "--tokens: expected 1e-50 to 1e+50, got 1e+300"),
        (["--parameters", "1e-300"], "--parameters: expected 1e-50 to 1e+50, got 1e-300"),
        (["--loss", "1e300"], "--loss: expected 1e-50 to 1e+50, got 1e+300"),
        (
            ["--loss", "1.4"],
            "--loss: expected more than the irreducible loss 1.5000, which no model goes below, got 1.4",
        ),
    ],
)
def test_a_question_without_an_answer_is_refused_in_one_line(predict, arguments, message):
    lines, errors = predict(*arguments)
    assert errors.startswith(f"error: {message}") and len(errors.splitlines()) == 1 and not lines


def test_far_from_the_runs_the_numbers_stay_short(predict):
    lines, errors = predict("--flops", "37.5e40")
    assert lines[0].split()[1:] == ["1e+20", "95%", "interval", "1e+20", "to", "1e+20"] and not errors
    lines, _ = predict("--loss", "1e9")
    assert lines[3].split()[-2:] == ["1e+09", "given"] and float(lines[0].split()[1]) == pytest.approx(6.4e-13)


def test_a_law_with_absurd_exponents_is_refused_and_one_at_a_limit_of_the_search_is_named(predict, fit_file, tmp_path):
    content = json.loads(fit_file.read_text())
    path = tmp_path / "fit.json"
    path.write_text(json.dumps({**content, "alpha": 1e-300}))
    assert predict("--flops", "1e15", fit=path)[1].startswith("error: arguments: expected a run whose parameters, tok")
    path.write_text(json.dumps({**content, "alpha": 0.01, "laws": []}))
    lines, errors = predict("--parameters", "1e5", "--tokens", "1e6", fit=path)
    assert lines[3].endswith("the fit has no samples for an interval") and not errors
    assert lines[-1].startswith("The runs do not determine alpha, which ended at a limit of the search, 0.01 to 5: do")


def test_a_missing_or_damaged_fit_is_explained(predict, tmp_path):
    advice = "make it with: lm fit FILE.csv --json FILE.json\n"
    assert predict("--flops", "1", fit=tmp_path / "none.json")[1].endswith(f"there is no such file; {advice}")
    (tmp_path / "fit.json").write_text('{"A": 1}')
    assert predict("--flops", "1", fit=tmp_path / "fit.json")[1].endswith(
        f"B: missing key, expected a number; {advice}"
    )


def test_without_the_fit_of_the_study_the_advice_is_to_run_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lm", "predict", "--flops", "1e15"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == (
        "error: studies/scaling/metrics/scaling.json: there is no such file; make it with: lm cells studies/scaling\n"
    )
