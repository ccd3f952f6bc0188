import csv
import json

import pytest

from lm.report.blocks import Plot
from lm.report.page import fill
from lm.report.run import Run
from lm.report.training import TRAINING, looks_back_from


def write(folder, losses, *, least=1.8, diverged=0):
    """A run with an evaluation every 100 steps; `least` is the least that first mentions of names can cost."""
    (folder / "metrics").mkdir()
    rows = [
        {"step": 100 * n, "train_loss": "", "val_loss": 2.0, "later_name_nats": loss} for n, loss in enumerate(losses)
    ]
    with (folder / "metrics/train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    metrics = {"step": 300, "tokens": 1_500_000, "diverged": diverged, "document_bits_per_byte": 0.5}
    (folder / "metrics/train.json").write_text(json.dumps({**metrics, "floor_bits_per_byte": 0.125}))
    if least is not None:
        (folder / "metrics/evaluation.json").write_text(json.dumps({"first_name_floor_nats": least}))
    return Run(folder)


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ([4.0, 3.0, 1.7, 1.0], 200),
        ([4.0, 1.0, 3.0, 1.7], 300),  # an early fall, while training reads short windows, does not last
        ([4.0, 3.0, 3.0, 1.8], None),
        ([1.0, "", 1.0, 1.0], 200),
    ],
)
def test_the_step_from_which_the_model_looks_back(tmp_path, losses, step):
    assert looks_back_from(write(tmp_path, losses)) == step


def test_the_finding_by_hand(tmp_path):
    assert TRAINING.finding(write(tmp_path, [4.0, 3.0, 1.7, 1.0])) == (
        "After 300 steps and 1.5M tokens, the loss is 0.5000 bits per byte, 0.3750 above the entropy of the text. "
        "The model looks back for names from step 200 on."
    )


def test_a_run_that_is_not_evaluated_yet_has_a_finding(tmp_path):
    (section,) = fill(write(tmp_path, [4.0, 1.0], least=None), "", [TRAINING]).sections
    assert section.finding.endswith("0.3750 above the entropy of the text.")
    assert [type(block) for block in section.blocks] == [Plot] * 5


def test_a_run_that_diverged_is_called_so(tmp_path):
    assert TRAINING.finding(write(tmp_path, [4.0, 9.0], diverged=1)) == "The run diverged after 300 steps."
