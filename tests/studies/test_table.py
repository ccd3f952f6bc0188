import math

import pytest

from lm.studies.table import markdown, table


def run(val_loss: float | None, diverged: int = 0) -> dict:
    loss = {} if val_loss is None else {"val_loss": val_loss}
    return {"num_parameters": 1234, "diverged": diverged, **loss}


def test_means_spreads_and_differences_by_hand():
    frame = table({"baseline": [run(2.0), run(4.0)], "no-norm": [run(5.0), run(5.0, 1)]})
    assert frame["variant"].tolist() == ["baseline", "no-norm"]
    assert frame["val_loss_mean"].tolist() == [3, 5]
    assert frame["difference"].tolist() == [0, 2]
    assert frame["val_loss_std"].tolist() == [pytest.approx(math.sqrt(2)), 0]  # (1 + 1) / (2 - 1)
    assert frame["diverged"].tolist() == [0, 1]


def test_one_seed_has_no_spread_and_a_run_without_any_loss_no_mean():
    frame = table({"baseline": [run(2.0)], "wild": [run(None, 1)]})
    assert frame["val_loss_std"].isna().all() and math.isnan(frame["val_loss_mean"][1])
    assert "| wild |  |  |  | 1,234 | 1 of 1 |" in markdown(frame)


def test_markdown_by_hand():
    text = markdown(table({"baseline": [run(2.0), run(2.5)], "silu": [run(2.0), run(2.0)]}))
    assert text.splitlines() == [
        "| variant | val loss | ± | difference | parameters | diverged |",
        "|---|---:|---:|---:|---:|---|",
        "| baseline | 2.2500 | 0.3536 | +0.0000 | 1,234 | no |",
        "| silu | 2.0000 | 0.0000 | -0.2500 | 1,234 | no |",
    ]
