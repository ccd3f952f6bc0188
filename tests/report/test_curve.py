import csv
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from lm.errors import UserError
from lm.report.curve import draw_bits_per_byte, draw_kinds, draw_losses, loss_curve, read_curve, training_picture
from lm.training.evaluation import DOCUMENT_LOSSES
from lm.training.metrics import write_curve

HISTORY = [
    {
        "step": step,
        "learning_rate": 0.1,
        "train_loss": None if step == 0 else 5 - step / 100,
        "val_loss": 5 - step / 100,
        "val_bits_per_byte": 2.0,
        **dict.fromkeys(DOCUMENT_LOSSES, 1.0),
        "grad_norm": None,
        "continuation": r"a \"b\"\n, c",
    }
    for step in (0, 100, 200)
]


def axes():
    return Figure().subplots()


def lines(drawn):
    return {line.get_label(): ([*line.get_xdata()], [*line.get_ydata()]) for line in drawn.lines}


def test_reading_returns_what_was_written(tmp_path):
    write_curve(HISTORY, tmp_path / "train.csv")
    history = read_curve(tmp_path / "train.csv")
    assert history == [{**row, "continuation": 'a "b"\n, c'} for row in HISTORY]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        ("", "contains no losses yet"),
        ("step,train_loss,val_loss\n", "contains no losses yet"),
        ("step,train_loss,val_loss\n0,,\n", "contains no losses yet"),
        ("step,train_loss,val_loss\n0,1e308,nan\n", "contains no losses yet"),
        ("a,b\n1,2\n", "not a table of losses"),
        ("step,val_loss\n1,2\n", "not a table of losses"),
        ("step,train_loss,val_loss\n,1,2\n", "not a table of losses"),
        ("step,train_loss,val_loss\n0,much,1\n", "not a table of losses"),
        ("step,train_loss,val_loss\n0,1,2,3\n", "not a table of losses"),
        ("\udcff", "not a table of losses"),
    ],
)
def test_what_is_not_a_curve_is_refused(tmp_path, content, message):
    path = tmp_path / "train.csv"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        read_curve(path)


def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lm.report.curve._MAX_BYTES", 30)
    (tmp_path / "train.csv").write_text("step,train_loss,val_loss\n0,1,2\n" * 2)
    with pytest.raises(UserError, match="expected at most 30 bytes"):
        read_curve(tmp_path / "train.csv")


def test_the_lines_are_the_columns_without_missing_values():
    drawn = axes()
    draw_losses(drawn, {"": HISTORY})
    assert lines(drawn) == {"train": ([100, 200], [4.0, 3.0]), "val, windows": ([0, 100, 200], [5.0, 4.0, 3.0])}


def test_experiments_differ_in_color():
    drawn = axes()
    draw_losses(drawn, {"base": HISTORY, "other": HISTORY})
    colors = {line.get_label(): line.get_color() for line in drawn.lines}
    assert colors["base: train"] == colors["base: val, windows"] != colors["other: train"]


def test_the_entropy_is_drawn_where_it_is_known():
    for floor in (None, 0.5):
        drawn = axes()
        draw_bits_per_byte(drawn, {"": HISTORY}, floor)
        assert ("entropy of the corpus" in lines(drawn)) == (floor is not None)


def test_without_kinds_of_tokens_the_pairs_are_drawn():
    kinds, pairs = axes(), axes()
    draw_kinds(kinds, HISTORY)
    unknown = dict.fromkeys(("later_name_nats", "later_other_nats", "wording_nats"))
    draw_kinds(pairs, [{**row, **unknown} for row in HISTORY])
    assert "wording" in lines(kinds)
    assert "repeated pairs" in lines(pairs)


def test_a_long_run_is_drawn_with_fewer_points():
    history = [{**HISTORY[1], "step": step} for step in range(10_000)]
    drawn = axes()
    draw_losses(drawn, {"": history})
    steps, _ = lines(drawn)["train"]
    assert len(steps) == 400
    assert (steps[0], steps[-1]) == (0, 9_999)


def test_the_curve_for_a_page_says_what_it_shows(tmp_path):
    with (tmp_path / "train.csv").open("w") as file:
        csv.writer(file).writerows([("step", "train_loss", "val_loss"), (0, "", 4.0), (5000, 3.0, 2.0)])
    svg = ElementTree.fromstring(loss_curve(tmp_path / "train.csv"))
    assert svg.get("aria-label") == "Loss in nats per token at step 5,000: train 3, val 2"


def test_the_picture_is_not_empty_and_identical_for_the_same_run(tmp_path):
    first, second = (tmp_path / f"{name}.png" for name in "ab")
    for path in (first, second):
        training_picture(HISTORY, 0.5, path)
    assert first.read_bytes() == second.read_bytes()
    assert imread(first).std() > 0.05


def test_a_run_without_a_finite_loss_has_a_picture(tmp_path):
    training_picture([{**dict.fromkeys(HISTORY[0]), "step": 0}], None, tmp_path / "train.png")
    assert (tmp_path / "train.png").exists()
