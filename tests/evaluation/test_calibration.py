import numpy as np
import pytest

from lm.errors import UserError
from lm.evaluation.calibration import read_calibration, write_calibration
from lm.evaluation.statistics import reliability


def test_reading_returns_what_was_written(tmp_path):
    written = reliability(np.array([0.9, 0.9, 0.9, 0.9, 0.25]), np.array([True, True, False, False, True]))
    write_calibration(written, tmp_path / "calibration.csv")
    assert (tmp_path / "calibration.csv").read_text() == "probability,accuracy,weight\n0.25,1,0.2\n0.9,0.5,0.8\n"
    found = read_calibration(tmp_path / "calibration.csv")
    for name in ("probability", "accuracy", "weight"):
        assert getattr(found, name) == pytest.approx(getattr(written, name))
    assert found.error == pytest.approx(0.2 * 0.75 + 0.8 * 0.4)


def test_without_a_finite_loss_the_table_has_no_rows(tmp_path):
    write_calibration(None, tmp_path / "calibration.csv")
    assert (tmp_path / "calibration.csv").read_text() == "probability,accuracy,weight\n"
    assert len(read_calibration(tmp_path / "calibration.csv").weight) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file; make it with: dvc repro evaluate"),
        ("a,b\n1,2\n", "not a table of probability, accuracy, weight; make it with"),
        ("probability,accuracy,weight\n0.5,0.5\n", "not a table of"),
        ("probability,accuracy,weight\n0.5,much,0.1\n", "not a table of"),
        ("\udcff", "not a table of"),
        ("probability,accuracy,weight\n0.5,nan,0.1\n", "expected shares from 0 to 1"),
        ("probability,accuracy,weight\n0.5,2,0.1\n", "expected shares from 0 to 1"),
    ],
)
def test_what_is_not_a_calibration_is_refused(tmp_path, content, message):
    path = tmp_path / "calibration.csv"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        read_calibration(path)
