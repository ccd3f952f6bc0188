import re

import pytest

from lm.errors import UserError
from lm.studies.scaling.files import read_fit, read_fits, write_fit
from lm.studies.scaling.law import Law

FIT: dict = {
    "A": 400.0,
    "B": 1000.0,
    "E": 1.5,
    "alpha": 0.5,
    "beta": 0.45,
    "objective": 1e-6,
    "irreducible": None,
    "counted": "parameters",
    "unit": "",
    "intervals": {"E": [1.4, 1.6]},
    "runs": 16,
    "ranges": {"parameters": [1e4, 1e6], "tokens": [1e5, 1e7], "flops": [6e9, 6e13]},
    "held_out": [{"parameters": 1e6, "tokens": 1e7, "loss": 2.2, "predicted": 2.3}],
    "laws": [[390.0, 1010.0, 1.4, 0.49, 0.46], [410.0, 990.0, 0.0, 0.51, 0.44]],
}


def test_a_fit_is_read_as_it_was_written_with_one_line_per_law(tmp_path):
    write_fit(tmp_path / "fit.json", {**FIT, "fits": {}})
    fit = read_fit(tmp_path / "fit.json")
    assert fit.law == Law(A=400, B=1000, E=1.5, alpha=0.5, beta=0.45)
    assert fit.samples == [Law(390, 1010, 1.4, 0.49, 0.46), Law(410, 990, 0, 0.51, 0.44)]
    assert fit.ranges.flops == [6e9, 6e13] and fit.held_out[0].predicted == 2.3
    assert "[390.0, 1010.0, 1.4, 0.49, 0.46]" in (tmp_path / "fit.json").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"A": 0}, "A: expected a positive number, got 0"),
        ({"beta": -0.5}, "beta: expected a positive number, got -0.5"),
        ({"E": -1}, "E: expected 0 or more, got -1"),
        ({"runs": 0}, "runs: expected 1 or more, got 0"),
        ({"E": "low"}, "E: expected a number, got 'low'"),
        ({"ranges": {}}, "ranges.parameters: missing key, expected a list"),
        (
            {"ranges": {**FIT["ranges"], "tokens": [1e5]}},
            "ranges.tokens: expected the lowest and the highest of positive numbers, got [100000.0]",
        ),
        (
            {"ranges": {**FIT["ranges"], "flops": [0, 1]}},
            "ranges.flops: expected the lowest and the highest of positive numbers, got [0.0, 1.0]",
        ),
        (
            {"held_out": [{**FIT["held_out"][0], "loss": 0}]},
            "held_out[0].loss: expected a positive number, got 0",
        ),
        (
            {"laws": [FIT["laws"][0], [1, 2]]},
            "laws[1]: expected the values of A, B, E, alpha and beta, all positive but E, which may be 0, "
            "got [1.0, 2.0]",
        ),
        (
            {"laws": [[1, 1, 1, 0, 1]]},
            "laws[0]: expected the values of A, B, E, alpha and beta, all positive but E, which may be 0, "
            "got [1.0, 1.0, 1.0, 0.0, 1.0]",
        ),
    ],
)
def test_a_file_with_wrong_values_is_refused(tmp_path, changes, message):
    write_fit(tmp_path / "fit.json", {**FIT, **changes})
    with pytest.raises(UserError, match=re.escape(f"fit.json: {message}; make it with: lm fit")):
        read_fit(tmp_path / "fit.json")


def test_a_file_without_a_law_says_why(tmp_path):
    write_fit(tmp_path / "fit.json", {"reason": "runs: expected 6 or more, got 4; add runs"})
    with pytest.raises(UserError, match="fit.json: holds no law: runs: expected 6 or more, got 4; add runs"):
        read_fit(tmp_path / "fit.json")


def test_all_fits_of_a_file_are_read_without_their_samples(tmp_path):
    saved = {name: value for name, value in FIT.items() if name != "laws"}
    write_fit(tmp_path / "fit.json", {**FIT, "fits": {"parameters, E free": saved | {"A": 2.0}}})
    fits = read_fits(tmp_path / "fit.json", "make it")
    assert {name: (fit.A, fit.samples) for name, fit in fits.items()} == {"parameters, E free": (2, [])}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (FIT, "fits: missing key, expected the fits"),
        ({"fits": {"parameters, E free": {"A": 1.0}}}, "fits.parameters, E free.B: missing key, expected a number"),
        ({"fits": {"parameters, E free": 3}}, "fits."),
    ],
)
def test_a_file_without_valid_fits_is_refused(tmp_path, content, message):
    write_fit(tmp_path / "fit.json", content)
    with pytest.raises(UserError, match=re.escape(f"fit.json: {message}")) as error:
        read_fits(tmp_path / "fit.json", "make it")
    assert str(error.value).endswith("; make it")
