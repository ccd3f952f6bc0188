from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.serving.curve import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, loss_curve, ticks


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
        (None, "does not exist"),
        ("step,train_loss,val_loss\n", "contains no losses yet"),
        ("step,train_loss,val_loss\n0,,\n", "contains no losses yet"),
        ("a,b\n1,2\n", "is not a readable table"),
        ("step,train_loss,val_loss\n0,much,1\n", "is not a readable table"),
        ("step,train_loss,val_loss\n0\n", "contains no losses yet"),
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
