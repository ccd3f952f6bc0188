from matplotlib.image import imread

from lm.pictures import comparison_picture, training_picture
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


def test_pictures_are_not_empty_and_identical_for_the_same_run(tmp_path):
    for name in ("a", "b"):
        training_picture(HISTORY, 0.5, tmp_path / f"train-{name}.png")
        comparison_picture({"baseline": [HISTORY, HISTORY], "x": [HISTORY]}, tmp_path / f"ablation-{name}.png")
    for kind in ("train", "ablation"):
        first, second = ((tmp_path / f"{kind}-{name}.png") for name in "ab")
        assert first.read_bytes() == second.read_bytes()
        assert imread(first).std() > 0.05


def test_a_run_without_a_finite_loss_has_a_picture(tmp_path):
    row = {**dict.fromkeys(HISTORY[0]), "step": 0}
    training_picture([row], None, tmp_path / "train.png")
    comparison_picture({"baseline": [[row]]}, tmp_path / "ablation.png")
    assert (tmp_path / "train.png").exists() and (tmp_path / "ablation.png").exists()
