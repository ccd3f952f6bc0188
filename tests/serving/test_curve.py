import os
import sys
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.serving import curve
from lm.serving.curve import BOTTOM, HEIGHT, LEFT, MAX_POINTS, RIGHT, TOP, WIDTH, loss_curve, ticks


def test_ticks_by_hand():
    assert ticks(0.3, 7.6, 5) == [2.0, 4.0, 6.0]
    assert ticks(0, 2500, 6) == [0, 500, 1000, 1500, 2000, 2500]
    assert ticks(0.5, 0.6, 5) == [0.5, 0.52, 0.54, 0.56, 0.58, 0.6]
    assert ticks(3.0, 3.0, 5) == [3.0]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 9))
def test_ticks_are_in_range_and_not_too_many(low, width, count):
    found = ticks(low, low + width, count)
    assert len(found) <= count + 1
    assert all(low - 1e-6 <= tick <= low + width + 1e-6 for tick in found)


def test_the_curve_contains_its_points(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text('step,train_loss,val_loss,text\n0,,4.0,"a,\nb"\n50,3.0,2.0,\n100,nan,1.0,\n')
    svg = ElementTree.fromstring(loss_curve(path))
    lines = {line.get("class"): line.get("points") for line in svg.iter("polyline")}
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    third = (bottom - TOP) / 3
    middle = (LEFT + right) / 2
    assert lines["val"] == f"{LEFT:.1f},{TOP:.1f} {middle},{round(bottom - third, 1)} {right:.1f},{bottom:.1f}"
    assert lines["train"] == f"{middle},{round(bottom - 2 * third, 1)}"
    assert [circle[0].text for circle in svg.iter("circle")] == [
        "train loss 3 at step 50", "val loss 4 at step 0", "val loss 2 at step 50", "val loss 1 at step 100",
    ]  # fmt: skip
    assert svg.get("aria-label") == "Loss in nats per token: train 3 at step 50, val 1 at step 100"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        ("step,train_loss,val_loss\n", "contains no losses yet"),
        ("step,train_loss,val_loss\n0,,\n", "contains no losses yet"),
        ("", "is not a readable table"),
        ("a,b\n1,2\n", "is not a readable table"),
        ("train_loss,val_loss,step\n1,2\n", "is not a readable table"),
        ("step,train_loss,val_loss\n0,much,1\n", "is not a readable table"),
        ("step,train_loss,val_loss\n0\n", "contains no losses yet"),
        ("step,train_loss,val_loss\n0,1e308,-1e308\n1e308,1,1\n", "contains no losses yet"),
        ("\udcff", "is not a readable table"),
    ],
)
def test_without_losses_a_note_says_why(tmp_path, content, message):
    path = tmp_path / "<b>.csv"
    if content is not None:
        path.write_text(content, encoding="utf-8", errors="surrogateescape")
    note = loss_curve(path)
    assert message in note
    assert "&lt;b&gt;.csv" in note and "<b>" not in note


EXTREMES = (0.0, 5e-324, 1e-323, 1e-12, 1.0, 1e17, 1e99, 1e100, 1e308, sys.float_info.max)


@given(st.lists(st.tuples(*[st.sampled_from(EXTREMES + tuple(-value for value in EXTREMES))] * 3), max_size=4))
def test_extreme_values_are_plotted_or_skipped(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "extreme.csv"
    path.write_text("\n".join(["step,train_loss,val_loss", *(",".join(map(repr, row)) for row in rows)]))
    ElementTree.fromstring(loss_curve(path))


def test_a_long_curve_is_thinned_to_evenly_spaced_points(tmp_path):
    path = tmp_path / "train.csv"
    last = 3 * (MAX_POINTS - 1)
    path.write_text("\n".join(["step,train_loss,val_loss", *(f"{step},,1" for step in range(last + 1))]))
    svg = ElementTree.fromstring(loss_curve(path))
    titles = [circle[0].text for circle in svg.iter("circle")]
    assert titles == [f"val loss 1 at step {step:,}" for step in range(0, last + 1, 3)]


def test_only_files_of_a_limited_size_are_read(tmp_path, monkeypatch):
    pipe, device, file = tmp_path / "pipe", tmp_path / "device", tmp_path / "file"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for path in (pipe, device):  # reading from them would not end
        assert "expected a file, got a device or pipe" in loss_curve(path)
    monkeypatch.setattr(curve, "_MAX_BYTES", 30)
    file.write_text("step,train_loss,val_loss\n0,1,2")
    assert loss_curve(file).startswith("<svg")
    file.write_text("step,train_loss,val_loss\n0,1,20")
    assert "is too large, more than 30 bytes" in loss_curve(file)


def test_a_file_name_that_is_not_utf8_is_escaped(tmp_path):
    assert r"\udcff.csv: there is no such file" in loss_curve(tmp_path / "\udcff.csv")
