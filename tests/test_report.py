import json

import pytest

from lm.errors import UserError
from lm.report import report

SAMPLE = {"prompt": "Once", "seed": 1, "text": "Once upon a time.", "ended": True}


@pytest.fixture
def folders(tmp_path):
    metrics, samples = tmp_path / "metrics", tmp_path / "samples"
    metrics.mkdir()
    samples.mkdir()
    (metrics / "train.json").write_text(json.dumps({"val_loss": 1.25, "num_parameters": 1315968}))
    (metrics / "ablation.md").write_text("| variant |\n|---|\n| baseline |\n")
    (metrics / "scaling.md").write_text("| N counts |\n|---|\n| all |\n")
    (metrics / "evaluation.json").write_text(json.dumps({"documents": 1, "tokens": 2, "diverged": 1}))
    (metrics / "train.png").write_bytes(b"")
    (samples / "samples.json").write_text(json.dumps([SAMPLE, {**SAMPLE, "text": "Not shown."}]))
    return metrics, samples


def test_the_report_has_metrics_table_one_sample_and_pictures(folders):
    text = report(*folders)
    for part in (
        "val_loss        1.25\n",
        "1,315,968",
        "loss is not finite",
        "| baseline |",
        "| N counts |",
        "Once upon a time.",
        "train.png",
    ):
        assert part in text
    assert "Not shown." not in text


@pytest.mark.parametrize("content", ["", "null", "[]", "3", '{"a\\nb": []}', '[{"text": "x"}]', "[" * 100_000])
@pytest.mark.parametrize("path", ["metrics/train.json", "metrics/evaluation.json", "samples/samples.json"])
def test_a_damaged_result_is_named_in_one_line(folders, path, content):
    (folders[0].parent / path).write_text(content)
    with pytest.raises(UserError, match=rf"{path}:.*; run the pipeline first: dvc repro\Z"):
        report(*folders)


def test_a_pipeline_that_has_not_ended_is_named(folders):
    (folders[1] / "samples.json").unlink()
    with pytest.raises(UserError, match="samples.json: there is no such file; run the pipeline first: dvc repro"):
        report(*folders)
