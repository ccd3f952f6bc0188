from matplotlib.image import imread

from lm.pictures import training_picture
from lm.training.evaluation import DOCUMENT_LOSSES

HISTORY = [
    {
        "step": step,
        "train_loss": None if step == 0 else 5 - step / 100,
        "val_loss": 5 - step / 100,
        "val_bits_per_byte": 2.0,
        **dict.fromkeys(DOCUMENT_LOSSES, 1.0),
    }
    for step in (0, 100, 200)
]


def test_the_picture_is_not_empty_and_identical_for_the_same_run(tmp_path):
    first, second = (tmp_path / f"{name}.png" for name in "ab")
    for path in (first, second):
        training_picture(HISTORY, 0.5, path)
    assert first.read_bytes() == second.read_bytes()
    assert imread(first).std() > 0.05


def test_a_run_without_a_finite_loss_has_a_picture(tmp_path):
    training_picture([{**dict.fromkeys(HISTORY[0]), "step": 0}], None, tmp_path / "train.png")
    assert (tmp_path / "train.png").exists()
