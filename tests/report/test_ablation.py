import math

import pandas as pd
import pytest

from lm.errors import UserError
from lm.report.ablation import ABLATION
from lm.report.blocks import Missing, Plot, Table
from lm.report.page import FilledSection, fill
from lm.report.run import Run

# The losses of three seeds. The differences of `better` are -0.1, -0.101 and -0.099: t = -173.2, with 2 degrees of
# freedom.
LOSSES = {
    "baseline": (1.0, 1.1, 1.2),
    "better": (0.9, 0.999, 1.101),
    "worse": (1.1, 1.201, 1.299),
    "equal": (1.01, 1.08, 1.21),
    "broken": (1.0, math.nan, 1.2),
}


def cells(*variants: str, seeds: int = 3, size: str = "64x2", tokens: int = 1000) -> pd.DataFrame:
    rows = [
        {
            "variant": variant,
            "size": size,
            "data": "c6e7a1",
            "tokens": tokens,
            "learning_rate": 0.01,
            "seed": seed,
            "parameters": 1200 if variant == "worse" else 1000,
            "parameters_without_embeddings": 800,
            "parameters_of_blocks": 500,
            "diverged": int(math.isnan(LOSSES[variant][seed])),
            "flops": 6e6,
            "loss": LOSSES[variant][seed],
            "floor": math.nan,
        }
        for variant in variants
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def section(tmp_path):
    def section(table: pd.DataFrame) -> FilledSection:
        (tmp_path / "metrics").mkdir(exist_ok=True)
        table.to_csv(tmp_path / "metrics" / "ablation_cells.csv", index=False)
        (filled,) = fill(Run(tmp_path), "Title", [ABLATION]).sections
        return filled

    return section


def test_the_finding_counts_the_verdicts(section):
    assert section(cells(*LOSSES)).finding == (
        "Of 4 variants, 1 is better, 1 is worse, 1 shows no difference and 1 diverged, compared with baseline at "
        "p < 0.05."
    )


@pytest.mark.parametrize(
    ("table", "finding"),
    [
        (cells("baseline"), "There is no variant to compare with baseline."),
        (
            cells("baseline", "better", "worse", seeds=1),
            "Of 2 variants, 2 have one seed only, compared with baseline at p < 0.05.",
        ),
        (
            cells("broken", "worse"),
            "Of 1 variant, 1 has a baseline that diverged, compared with broken at p < 0.05.",
        ),
        (
            pd.concat([cells("baseline", "better"), cells("baseline", "worse", "equal", size="128x2")]),
            "Of 1 variant of size 64x2, 1 is better; of 2 variants of size 128x2, 1 is worse and 1 shows no "
            "difference, compared with baseline at p < 0.05.",
        ),
    ],
    ids=["no variant", "one seed", "baseline diverged", "two sizes"],
)
def test_the_finding_of_other_studies(section, table, finding):
    assert section(table).finding == finding


def test_the_table_has_a_row_per_variant(section):
    table = section(cells(*LOSSES)).blocks[-1]
    assert isinstance(table, Table)
    rows = {row[0]: row[1:] for row in table.rows}
    # The standard error of the differences of `better` is 0.001 / sqrt(3), and t(0.975, 2) = 4.303.
    assert rows["better"][:2] == ["1.0000", "-0.1000 (-0.1025 to -0.0975)"]
    assert rows["better"][3:] == ["better", "1,000", "1.00", "0 of 3"]
    # With 2 degrees of freedom, p = 1 - t / sqrt(t² + 2) = 3.333e-5, which Holm's correction multiplies by 3.
    assert rows["better"][2] == "< 0.0001"
    assert rows["baseline"][1:4] == ["", "", "baseline"]
    assert rows["broken"] == ["", "", "", "diverged", "1,000", "1.00", "1 of 3"]
    assert "Not matched to baseline within 1%: worse (parameters +20.0%)." in table.note


def test_the_forest_plot_is_described_for_people_who_do_not_see_it(section):
    forest = section(cells(*LOSSES)).blocks[0]
    assert isinstance(forest, Plot) and forest.command == "dvc repro ablation_table"
    assert "better, -0.1000 (-0.1025 to -0.0975), better; " in forest.alt and "broken, diverged" in forest.alt
    assert "baseline," not in forest.alt


def test_the_losses_are_drawn_where_there_are_several_numbers_of_tokens(section):
    table = pd.concat([cells("baseline", "better"), cells("baseline", "better", tokens=4000)])
    assert [type(block) for block in section(table).blocks] == [Plot, Plot, Table]
    assert [type(block) for block in section(cells("baseline")).blocks] == [Table]


def test_a_missing_file_is_said_once(tmp_path):
    (filled,) = fill(Run(tmp_path), "Title", [ABLATION]).sections
    (block,) = filled.blocks
    assert isinstance(block, Missing) and "lm cells" in block.message
    with pytest.raises(UserError):
        ABLATION.finding(Run(tmp_path))
