import json
import shutil

import pytest
import yaml

from lm.errors import UserError
from lm.report import comparison
from lm.report.blocks import Missing, Plot, Table, Text
from lm.report.comparison import compare
from lm.report.experiments import fetch

CURVE = "step,train_loss,val_loss,val_bits_per_byte,document_bits_per_byte\n0,,5,2,2\n10,3,{loss},1,{loss}\n"


def write_run(folder, loss, norm, *, diverged=0, samples=True):
    (folder / "metrics").mkdir(parents=True)
    params = {"model": {"norm": norm, "d_model": 8}, "runtime": {"device": "cpu"}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    metrics = {"step": 10, "diverged": diverged, "document_bits_per_byte": loss}
    (folder / "metrics" / "train.json").write_text(json.dumps(metrics))
    (folder / "metrics" / "train.csv").write_text(CURVE.format(loss=loss))
    if samples:
        (folder / "data" / "samples").mkdir(parents=True)
        sample = {"prompt": "a", "seed": 1, "text": f"text of {norm}", "ended": True}
        (folder / "data" / "samples" / "samples.json").write_text(json.dumps([sample]))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    write_run(tmp_path / "base", 0.5, "rmsnorm")
    write_run(tmp_path / "no-norm", 0.75, "none", samples=False)
    write_run(tmp_path / "lost", 9.0, "none", diverged=1)
    monkeypatch.setattr(
        comparison, "fetch", lambda name, folder: shutil.copytree(tmp_path / name, folder, dirs_exist_ok=True)
    )


def test_two_experiments_side_by_side(runs):
    parameters, training, metrics, samples = compare(["base", "no-norm"]).sections
    assert parameters.finding == "The loss of base is the lowest: 0.5000 bits per byte, 0.2500 below that of no-norm."
    (table,) = parameters.blocks
    assert isinstance(table, Table)
    assert (list(table.header), table.rows) == (["parameter", "base", "no-norm"], [["model.norm", "rmsnorm", "none"]])
    assert table.command == "dvc params diff base no-norm"
    assert [type(block) for block in training.blocks] == [Plot, Plot]
    table, missing = metrics.blocks
    assert table.rows == [["document_bits_per_byte", "0.5", "0.75"]]
    assert "no metrics/evaluation.json" in missing.message
    assert isinstance(samples.blocks[0], Text) and samples.blocks[0].text == "text of rmsnorm"
    assert isinstance(samples.blocks[1], Missing)


def test_equal_losses_are_called_equal(runs, tmp_path):
    shutil.copytree(tmp_path / "base", tmp_path / "again")
    assert compare(["base", "again"]).sections[0].finding == "The loss of all is the same: 0.5000 bits per byte."


def test_a_run_that_diverged_is_named(runs):
    assert compare(["base", "lost"]).sections[0].finding == "lost diverged."


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["base"], "expected 2 to 8 experiments, got 1; .* lm report workspace base"),
        (["base", "base"], "'base': given twice"),
        ([str(n) for n in range(9)], "expected 2 to 8 experiments, got 9"),
    ],
)
def test_names_that_cannot_be_compared(names, message):
    with pytest.raises(UserError, match=message):
        compare(names)


def test_losses_of_different_kinds_are_not_compared(runs, tmp_path):
    for name, values in {
        "base": {"document_bits_per_byte": 0.5, "val_bits_per_byte": 0.9},
        "no-norm": {"val_bits_per_byte": 0.8},
        "lost": {"document_bits_per_byte": 0.1},
    }.items():
        (tmp_path / name / "metrics" / "train.json").write_text(json.dumps({"diverged": 0, **values}))
    finding = compare(["base", "no-norm"]).sections[0].finding
    assert finding == "The loss of no-norm is the lowest: 0.8000 bits per byte, 0.1000 below that of base."
    assert compare(["no-norm", "lost"]).sections[0].finding == ""


def test_the_workspace_needs_a_finished_run(tmp_path, monkeypatch):
    write_run(tmp_path / "project", 0.5, "rmsnorm")
    monkeypatch.chdir(tmp_path / "project")
    fetch("workspace", tmp_path / "copy")
    assert (tmp_path / "copy" / "metrics" / "train.csv").read_text() == CURVE.format(loss=0.5)
    (tmp_path / "project" / "metrics" / "train.json").unlink()
    with pytest.raises(UserError, match="'workspace': has no metrics/train.json"):
        fetch("workspace", tmp_path / "other")
