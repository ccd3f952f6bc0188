import math

import pandas as pd
import pytest

from lm.errors import UserError
from lm.studies.cells_table import read_cells

HEADER = (
    "variant,size,tokens,learning_rate,seed,parameters,parameters_without_embeddings,parameters_of_blocks,flops,"
    "diverged,loss,floor,data,note\n"
)
ROW = "baseline,64x2,1000,0.01,0,500,400,300,3e6,0,0.75,0.5,c6e7a1,first\n"


def read(tmp_path, text: str) -> pd.DataFrame:
    path = tmp_path / "cells.csv"
    path.write_text(text)
    return read_cells(path)


def test_columns_have_their_types_and_others_stay_as_they_are(tmp_path):
    cells = read(tmp_path, HEADER + ROW + "none,64x2,1000,0.01,0,500,400,300,3e6,1,,0.5,c6e7a1,NA\n")
    assert cells["variant"].tolist() == ["baseline", "none"]
    assert cells["tokens"].tolist() == [1000, 1000] and cells["tokens"].dtype == int
    assert cells["loss"][0] == 0.75 and math.isnan(cells["loss"][1])
    assert cells["data"].tolist() == ["c6e7a1"] * 2
    assert cells["note"].tolist() == ["first", "NA"]


def test_a_loss_that_is_not_finite_is_nan_and_so_is_an_unknown_floor(tmp_path):
    for text in ("inf", "nan", "NaN", "-inf", ""):
        assert read(tmp_path, HEADER + ROW.replace("0.75,0.5", f"{text},"))[["loss", "floor"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got a damaged file"),
        ("\0\x01\x02\n\0", "expected the column variant|damaged"),
        (HEADER + '"', "got a damaged file"),
        (HEADER + ROW.strip() + ",1,2,3\n", "got a damaged file"),
        (HEADER.replace("flops", "flop") + ROW, "expected the column flops, got 'variant, size"),
        (HEADER, "expected at least one run, got none"),
        (HEADER + "baseline,64x2,10\n", "run 1, seed: expected a finite number, got ''"),
        (HEADER + ROW.replace("0.75", "good"), "run 1, loss: expected a number, got 'good'"),
        (HEADER + ROW.replace("3e6", "-3e6"), "run 1, flops: expected a positive number, got '-3e6'"),
        (HEADER + ROW.replace("1000", "10.5"), "run 1, tokens: expected a whole number, got '10.5'"),
        (HEADER + ROW.replace("3e6,0", "3e6,2"), "run 1, diverged: expected 0 or 1, got '2'"),
        (HEADER + ROW.replace("64x2", ""), "run 1, size: expected text, got ''"),
        (HEADER + ROW.replace("c6e7a1", ""), "run 1, data: expected text, got ''"),
        (HEADER + ROW.replace(",c6e7a1,first", ""), "run 1, data: expected text, got ''"),
        (HEADER.replace("data,", "") + ROW.replace("c6e7a1,", ""), "expected the column data, got"),
        (HEADER + ROW + ROW, "expected every run once, got two of 'baseline, 64x2, 1000, 0.01, 0'"),
    ],
)
def test_mistakes_are_one_line_with_advice(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, text)
    assert str(caught.value).endswith("; train the cells first: lm cells")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",c6e7a1", ",b02d55", "expected runs on the same tokens, got 'c6e7a1' and 'b02d55'"),
        ("0.5,c", "0.6,c", "one entropy, got 0.5 and 0.6"),
        ("500", "501", "'baseline, 64x2', got 500 and 501"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(tmp_path, old, new, message):
    other = ROW.replace("0.01,0", "0.01,1").replace(old, new)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, HEADER + ROW + other)
    assert str(caught.value).endswith("; train the cells again: lm cells")


def test_a_missing_file_is_one_line_with_advice(tmp_path):
    with pytest.raises(UserError, match="no such file; train the cells first: lm cells"):
        read_cells(tmp_path / "cells.csv")
