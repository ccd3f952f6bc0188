import math

import numpy as np
import pandas as pd
import pytest

from lm.report.blocks import Facts, Missing, Plot, Table
from lm.report.page import FilledSection, fill
from lm.report.run import Run
from lm.report.scaling import SCALING
from lm.studies.scaling.files import write_fit

ENTROPY = 0.5
LAW = {"A": 20.0, "B": 1200.0, "alpha": 0.45, "beta": 0.55}


def cells(entropy: float = ENTROPY) -> pd.DataFrame:
    rows = [
        {
            "variant": "muon",
            "size": f"{width}x1",
            "data": "c6e7a1",
            "tokens": tokens,
            "learning_rate": 0.01,
            "seed": 1,
            "parameters": 200 * width,
            "parameters_without_embeddings": 100 * width,
            "parameters_of_blocks": 50 * width,
            "flops": 600.0 * width * tokens,
            "diverged": 0,
            "loss": ENTROPY + 20 * (100 * width) ** -0.45 + 1200 * tokens**-0.55,
            "floor": entropy,
        }
        for width in (10, 20, 40)
        for tokens in (100_000, 200_000, 400_000)
    ]
    return pd.DataFrame(rows)


def saved(E: float, irreducible: float | None, factors: tuple[float, ...]) -> dict:
    """A fit, with the factors by which its forecasts of the most expensive runs are off."""
    tokens = (400_000, 200_000)
    losses = [ENTROPY + 20 * 4000**-0.45 + 1200 * D**-0.55 for D in tokens]
    return {
        **LAW,
        "E": E,
        "objective": 1e-6,
        "irreducible": irreducible,
        "counted": "parameters of blocks and head",
        "unit": "bits per byte",
        "intervals": {name: [value / 2, value * 2] for name, value in LAW.items()} | {"E": [E, E]},
        "runs": 9,
        "ranges": {"parameters": [1e3, 4e3], "tokens": [1e5, 4e5], "flops": [6e8, 9.6e9]},
        "held_out": [
            {"parameters": 4e3, "tokens": float(D), "loss": loss, "predicted": factor * loss}
            for D, loss, factor in zip(tokens, losses, factors)
        ],
    }


def fits(entropy: float | None, factors: tuple[float, ...] = (1.01, 0.97)) -> dict:
    """The content of the stage's file."""
    count = "parameters_without_embeddings"
    by_name = {f"{count}, E free": saved(0.0, None, factors)}
    if entropy is not None:
        by_name[f"{count}, E known"] = saved(entropy, entropy, factors)
    main = list(by_name.values())[-1]
    # The exponent of the optimum is 0.5 and 0.6.
    laws = [[20.0, 1200.0, main["E"], 0.5, 0.5], [20.0, 1200.0, main["E"], 0.4, 0.6]]
    return {**main, "laws": laws, "fits": by_name}


@pytest.fixture
def section(tmp_path):
    def section(content: dict, entropy: float = ENTROPY) -> FilledSection:
        (tmp_path / "metrics").mkdir(exist_ok=True)
        cells(entropy).to_csv(tmp_path / "metrics" / "scale_cells.csv", index=False)
        write_fit(tmp_path / "metrics" / "scaling.json", content)
        (filled,) = fill(Run(tmp_path), "Title", [SCALING]).sections
        return filled

    return section


def test_the_finding_is_the_error_of_the_forecast(section):
    assert section(fits(ENTROPY)).finding == (
        "From 7 runs and the entropy of the text, the scaling law predicts the loss of the 2 most expensive runs with "
        "an error of 2.0% on average."
    )
    assert section(fits(None, (1.01,)), math.nan).finding == (
        "From 8 runs, the scaling law predicts the loss of the most expensive run with an error of 1.0%."
    )
    assert section(fits(None, ()), math.nan).finding == (
        "A scaling law is fitted to 9 runs, too few to predict the most expensive ones from the others."
    )


def test_the_fit_with_its_intervals_and_the_runs_that_it_had_not_seen(section):
    *plots, facts, law, held_out = section(fits(ENTROPY)).blocks
    assert [plot.name for plot in plots] == ["scaling-law", "scaling-forecasts", "scaling-isoflop"]
    assert isinstance(facts, Facts) and isinstance(law, Table) and isinstance(held_out, Table)
    assert dict(facts.rows)["entropy of the text"] == "0.5000 bits per byte"
    assert dict(facts.rows)["compute-optimal N grows as"] == "FLOPs^0.55 (0.50 to 0.60)"
    assert law.header == ("symbol", "E fitted", "E given")
    assert law.rows[0] == ("E", "0, its lower bound", "0.5000, given")
    assert law.rows[3] == ("alpha", "0.45 (0.225 to 0.9)", "0.45 (0.225 to 0.9)")
    loss = ENTROPY + 20 * 4000**-0.45 + 1200 * 400_000**-0.55
    assert held_out.rows[0][:4] == ("4,000", "400,000", f"{loss:.4f}", f"{1.01 * loss:.4f} (+1.00%)")


def test_without_the_entropy_there_is_one_fit(section):
    *_, facts, law, held_out = section(fits(None), math.nan).blocks
    assert dict(facts.rows)["entropy of the text"] == "not known"
    assert law.header == ("symbol", "E fitted") and "entropy" not in law.note
    assert len(held_out.rows) == 2


def test_the_figures_say_their_main_numbers(section):
    curves, forecasts, isoflop = section(fits(ENTROPY)).blocks[:3]
    assert isinstance(curves, Plot) and isinstance(forecasts, Plot) and isinstance(isoflop, Plot)
    assert "9 runs after 100k to 400k tokens" in curves.alt and "entropy of the text, 0.5" in curves.alt
    assert forecasts.alt.endswith("E fitted, 2.0%, E given, 2.0%")
    line = curves.figure.axes[0].lines[1]  # the first curve of the law
    assert np.asarray(line.get_ydata())[0] == pytest.approx(cells()["loss"][0])


def test_runs_that_determine_no_law_are_drawn_with_the_reason(section):
    filled = section({"reason": "runs: expected 6 or more, got 2; add runs"})
    assert filled.finding == "No scaling law is fitted: runs: expected 6 or more, got 2; add runs."
    (plot,) = filled.blocks
    assert isinstance(plot, Plot) and plot.name == "scaling-runs"


def test_a_missing_file_is_said_with_the_command_that_makes_it(tmp_path):
    (tmp_path / "metrics").mkdir()
    cells().to_csv(tmp_path / "metrics" / "scale_cells.csv", index=False)
    (filled,) = fill(Run(tmp_path), "Title", [SCALING]).sections
    (block,) = filled.blocks
    assert isinstance(block, Missing) and block.message.endswith("make it with: dvc repro scaling_law")
