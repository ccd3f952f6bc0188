import csv
import dataclasses
import json

import pytest

from lm.training.evaluation import DOCUMENT_LOSSES
from lm.training.history import Progress
from lm.training.metrics import evaluation_row, run_metrics, write_curve

DOCUMENT_LOSSES_OF_A_ROW = dict.fromkeys(DOCUMENT_LOSSES, 1.5)


def row_of(run, data, val_loss: float = 1.0, continuation: str = "text"):
    progress = Progress(0, [], [])
    return evaluation_row(run, data, progress, val_loss, DOCUMENT_LOSSES_OF_A_ROW, None, continuation)


def test_a_loss_that_equals_the_floor_is_equal_in_both_units(run, data):
    data = dataclasses.replace(data, val_entropy_bits=123.0)
    row = row_of(run, data, val_loss=row_of(run, data)["floor_nats"])
    assert row["floor_bits_per_byte"] == 123 / data.val_text_bytes
    assert row["val_bits_per_byte"] == pytest.approx(row["floor_bits_per_byte"], rel=1e-12)
    metrics = run_metrics(run, data, 300, Progress(0, [row], []))
    assert metrics["floor_bits_per_byte"] == row["floor_bits_per_byte"]


def test_the_columns_of_an_unknown_floor_are_empty(run, data, tmp_path):
    row = row_of(run, data)
    assert "floor_bits_per_byte" not in run_metrics(run, data, 300, Progress(0, [row], []))
    write_curve([row], tmp_path / "train.csv")
    (written,) = csv.DictReader((tmp_path / "train.csv").read_text().splitlines())
    assert written["floor_nats"] == written["floor_bits_per_byte"] == ""


def test_a_continuation_has_no_tags_and_can_be_restored(run, data):
    text = '</script><img src=x onerror="alert(1)">\\\n'
    escaped = row_of(run, data, continuation=text)["continuation"]
    assert "<" not in escaped and json.loads(f'"{escaped}"') == text
