import math
import sys

import pandas as pd
import pytest

from lm.errors import UserError
from lm.studies.ablation.table import longest_runs, markdown, table
from lm.studies.cells_table import read_cells
from stages.ablation_table import main


def runs(variant: str, losses: list[float], tokens: int = 1000, **changes: object) -> pd.DataFrame:
    """One run per loss, with the seeds 0, 1 and so on."""
    values = {
        "variant": variant,
        "size": "64x2",
        "data": "c6e7a1",
        "tokens": tokens,
        "learning_rate": 0.01,
        "seed": range(len(losses)),
        "parameters": 1234,
        "parameters_without_embeddings": 1000,
        "parameters_of_blocks": 900,
        "flops": 6.0 * 1234 * tokens,
        "diverged": 0,
        "loss": losses,
        "floor": 0.5,
    }
    return pd.DataFrame(values | changes)


def row(frame: pd.DataFrame, variant: str, tokens: int = 1000) -> dict:
    return frame[(frame["variant"] == variant) & (frame["tokens"] == tokens)].iloc[0].to_dict()


def test_columns_and_a_row_by_hand():
    frame = table(pd.concat([runs("baseline", [1.0, 2.0, 3.0]), runs("silu", [2.0, 4.0, 6.0])]))
    assert {"difference_low", "difference_high", "p_value", "verdict", "num_parameters", "runs"} <= set(frame)
    silu = row(frame, "silu")
    assert (silu["loss"], silu["difference"], silu["num_parameters"], silu["runs"], silu["pairs"]) == (4, 2, 1234, 3, 3)
    # The differences 1, 2 and 3: t = 2 sqrt(3) with two degrees of freedom.
    assert silu["p_value"] == pytest.approx(1 - math.sqrt(12 / 14))
    assert silu["difference_low"] == pytest.approx(2 - 4.302653 / math.sqrt(3))
    assert silu["verdict"] == "no difference shown"
    assert row(frame, "baseline")["verdict"] == "baseline"


def test_every_size_and_number_of_tokens_is_a_family_of_its_own():
    cells = pd.concat(
        runs(variant, losses, tokens, size=size)
        for size in ("64x2", "128x4")
        for tokens in (1000, 4000)
        for variant, losses in (("baseline", [1.0, 2.0, 3.0]), ("a", [1.1, 2.2, 3.25]), ("b", [0.9, 1.85, 2.8]))
    )
    frame = table(cells)
    assert len(frame) == 2 * 2 * 3
    assert frame["variant"].tolist() == ["baseline", "a", "b"] * 4
    alone = table(cells[(cells["size"] == "64x2") & (cells["tokens"] == 1000)])
    for variant in ("a", "b"):
        assert frame[frame["variant"] == variant]["p_value"].tolist() == pytest.approx(
            [row(alone, variant)["p_value"]] * 4
        )


def test_multipliers_stand_in_the_rows_of_the_largest_number_of_tokens():
    cells = pd.concat(
        runs(variant, [0.5 + scale * tokens**-0.5], tokens)
        for variant, scale in (("baseline", 1.0), ("fast", 0.8))
        for tokens in (1000, 4000, 16000)
    )
    frame = table(cells)
    assert row(frame, "fast", 16000)["multiplier"] == pytest.approx(0.8**-2)
    assert math.isnan(row(frame, "fast", 4000)["multiplier"])
    assert row(frame, "baseline", 16000)["multiplier"] == 1
    assert "time_multiplier" not in frame
    assert "| fast | -0.0063, one seed | -0.0032, one seed | -0.0016, one seed | 1.56 |" in markdown(frame)


def test_one_number_of_tokens_has_no_multiplier():
    frame = table(pd.concat([runs("baseline", [1.0, 2.0]), runs("silu", [1.0, 2.5])]))
    assert frame["multiplier"].isna().all()
    assert "multiplier" not in markdown(frame) and "over the numbers of tokens" not in markdown(frame)


def test_the_time_multiplier_needs_the_seconds():
    cells = pd.concat(
        runs(variant, [0.5 + tokens**-0.5], tokens, seconds=seconds * tokens)
        for variant, seconds in (("baseline", 1.0), ("slow", 1.25))
        for tokens in (1000, 4000)
    )
    slow = row(table(cells), "slow", 4000)
    assert slow["multiplier"] == pytest.approx(1) and slow["time_multiplier"] == pytest.approx(0.8)


def test_runs_that_diverged_are_counted_and_never_left_out():
    frame = table(
        pd.concat(
            [
                runs("baseline", [1.0, 2.0], wording_nats=0.25),
                runs("wild", [1.0, math.nan], diverged=[0, 1], wording_nats=[0.25, math.nan]),
                runs("kept", [9.0, 9.5], diverged=[1, 0], wording_nats=0.5),  # the loss of an earlier model
            ]
        )
    )
    for variant in ("wild", "kept"):
        found = row(frame, variant)
        assert (found["verdict"], found["diverged"], found["runs"]) == ("diverged", 1, 2)
        assert all(math.isnan(found[name]) for name in ("loss", "difference", "p_value", "wording_nats"))
        assert f"| {variant} |  |  |  | diverged |  | 1,234 | 1.00 | 1 of 2 |" in markdown(frame)


def test_a_run_that_diverged_gives_no_multiplier():
    def frame(**diverged: int) -> pd.DataFrame:
        return table(
            pd.concat(
                runs(variant, [0.5 + tokens**-0.5], tokens, diverged=diverged.get(variant, 0))
                for variant in ("baseline", "x")
                for tokens in (1000, 4000)
            )
        )

    assert frame()["multiplier"].tolist()[2:] == [1, pytest.approx(1)]
    assert row(frame(x=1), "x", 4000)["diverged"] == 1
    assert frame(x=1)["multiplier"].tolist()[2] == 1 and math.isnan(frame(x=1)["multiplier"].tolist()[3])
    without_baseline = frame(baseline=1)
    assert without_baseline["multiplier"].isna().all()
    assert without_baseline["verdict"].tolist() == ["diverged", "baseline diverged"] * 2


def test_several_learning_rates_in_a_row_are_refused():
    with pytest.raises(UserError, match="'silu, 64x2, 1000 tokens': expected one learning rate, got 0.01 and 0.02"):
        table(pd.concat([runs("baseline", [1.0]), runs("silu", [1.0, 2.0], learning_rate=[0.01, 0.02])]))


def test_markdown_by_hand():
    cells = [
        runs("baseline", [1.0, 2.0, 3.0], tokens_per_second=1000.0, wording_nats=0.25),
        runs("silu", [2.0, 4.0, 6.0], tokens_per_second=1100.0, wording_nats=0.5),
    ]
    lines = markdown(table(pd.concat(cells))).splitlines()
    assert lines[:6] == [
        "**Size 64x2, 1,000 tokens**",
        "",
        "| variant | loss | difference | p | verdict | minimum detectable difference | parameters | FLOPs | tokens/s "
        "| diverged |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | --- |",
        "| baseline | 2.0000 |  |  | baseline |  | 1,234 | 1.00 | 1.00 | 0 of 3 |",
        "| silu | 4.0000 | +2.0000 (-0.4841 to +4.4841) | 0.0742 | no difference shown | 3.2640 | 1,234 | 1.00 | 1.10 "
        "| 0 of 3 |",
    ]
    assert lines[7:12] == [
        "**Size 64x2, 1,000 tokens, parts of the loss in nats per token**",
        "",
        "| variant | wording |",
        "| --- | ---: |",
        "| baseline | 0.2500 |",
    ]
    assert "the entropy of the text is 0.5000." in lines[14]


def test_what_the_readme_may_claim_is_bold():
    # Differences of mean 1: their standard deviations 0.1 and 0.2 give t = 17.3 and 8.66 with two degrees of freedom,
    # p = 0.0033 and 0.0131, and 0.0066 and 0.0131 after Holm's correction.
    cells = [
        runs("baseline", [1.0, 2.0, 3.0]),
        runs("clear", [1.9, 3.0, 4.1]),
        runs("vague", [1.8, 3.0, 4.2]),
    ]
    text = markdown(table(pd.concat(cells)))
    assert "| **0.0066** | worse |" in text and "| 0.0131 | worse |" in text
    assert "- The README claims only what has p < 0.01 (in bold).\n" in text


def test_rows_that_are_not_fair_are_named():
    cells = [runs("baseline", [1.0]), runs("near", [1.0], parameters=1240), runs("big", [1.0], parameters=2468)]
    cells.append(runs("costly", [1.0], flops=6.0 * 1234 * 1000 * 0.9))
    text = markdown(table(pd.concat(cells)))
    assert "Not matched to baseline within 1%: big (parameters +100.0%), costly (FLOPs -10.0%)." in text


def test_runs_without_a_pair_are_named():
    text = markdown(table(pd.concat([runs("baseline", [1.0, 2.0]), runs("x", [1.0, 2.1, 3.0])])))
    assert "Not every run has a pair: x at 1,000 tokens (2 of 3)." in text
    alone = table(pd.concat([runs("baseline", [1.0]), runs("x", [1.0], size="128x4")]))
    assert alone["verdict"].tolist() == ["baseline", "no pair"]
    assert "| x | 1.0000 |  |  | no pair |  | 1,234 |  | 0 of 1 |" in markdown(alone)


def test_the_largest_number_of_tokens_is_the_baselines():
    frame = table(pd.concat([runs("baseline", [1.0]), runs("x", [1.0]), runs("x", [0.9], tokens=4000)]))
    assert longest_runs(frame, "baseline")["tokens"].unique().tolist() == [1000]


def test_the_stage_writes_tables_and_picture(tmp_path, monkeypatch):
    cells, written, picture = tmp_path / "cells.csv", tmp_path / "metrics/ablation.md", tmp_path / "plots/ablation.png"
    arguments = ["--cells", cells, "--table", written, "--picture", picture]
    monkeypatch.setattr(sys, "argv", ["ablation_table", *map(str, arguments)])
    with pytest.raises(UserError, match="cells.csv: there is no such file; train the cells first: lm cells"):
        main()
    pd.concat([runs("baseline", [1.0, 2.0]), runs("x", [1.5, 2.6])]).to_csv(cells, index=False)
    main()
    assert written.read_text() == markdown(table(read_cells(cells)))
    assert pd.read_csv(written.with_suffix(".csv"))["difference"].tolist() == pytest.approx([0, 0.55])
    assert picture.stat().st_size > 1000
