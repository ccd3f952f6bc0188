from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.common.models import SYSTEMS
from bench.training.curves import report, seconds_to
from bench.training.measure_curve import learning_curve
from bench.training.time_to_loss import MODELS, our_job, their_job, write_data
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError


def training(system: str, rate: float, *curve: tuple[float, float]) -> dict[str, Any]:
    points = [
        {"step": number, "seconds": seconds, "val_bits_per_byte": bits}
        for number, (seconds, bits) in enumerate(curve, start=1)
    ]
    figures = {"batch_size": 8, "dtype": "float32", "compile": False, "attention": "sdpa", "steps": len(points)}
    return figures | {
        "system": system,
        "learning_rate": rate,
        "curve": points,
        "first_step_seconds": 1.0,
        "parameters": 836_448,
    }


def test_seconds_to_a_value_are_interpolated_between_two_evaluations() -> None:
    curve = training("lm", 0.01, (10, 2.0), (20, 1.0), (30, 1.2), (40, 0.8))["curve"]
    found = [seconds_to(curve, bits) for bits in (2.5, 2.0, 1.5, 1.0, 0.9, 0.7)]
    assert found == [10, 10, 15, 20, pytest.approx(37.5), None]


def test_ours_is_compared_with_the_best_of_the_others() -> None:
    ours = training("lm", 0.02, (20, 2.0), (40, 1.0))
    others = [
        training("gpt2", 0.001, (50, 1.75)),
        training("gpt2", 0.003, (50, 1.5)),
        training("nanogpt", 0.01, (50, 9)),
    ]
    assert report([ours, *others])[-1] == (
        "The best of the others, gpt2 at 0.003, ends at 1.5000 bits per byte; ours reaches that in 0.60 of its time."
    )
    slow = training("lm", 0.02, (50, 1.6))
    assert report([slow, *others])[-1].endswith("ends at 1.5000 bits per byte; ours ends at 1.6000.")


def test_the_split_is_by_documents_and_counts_only_their_text(tmp_path: Path) -> None:
    documents = [f"Story {number}: once upon a time there was a cat named number {number}." for number in range(100)]
    (tmp_path / "text.txt").write_text(END_OF_TEXT.join(documents), encoding="utf-8")
    data = write_data(tmp_path / "text.txt", tmp_path)
    train = (tmp_path / "train.txt").read_text(encoding="utf-8").split(END_OF_TEXT)[:-1]
    assert train == documents[: len(train)]
    held_out = sum(len(document.encode()) for document in documents[len(train) :])
    assert data["val_text_bytes"] == held_out
    assert 0.05 <= held_out / sum(map(len, documents)) < 0.07
    for name, count in (("tokens", len(train)), ("val_tokens", 100 - len(train))):
        assert (np.load(data[name]) == data["end_of_text_id"]).sum() == count


@pytest.mark.parametrize("text", [b"one document", b"\xff" + END_OF_TEXT.encode(), None])
def test_text_that_cannot_be_split_is_an_error(tmp_path: Path, text: bytes | None) -> None:
    path = tmp_path / "text.txt"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(UserError, match="--data: .*text.txt: "):
        write_data(path, tmp_path)


@pytest.mark.parametrize("system", ["transformers", "gpt2"])
def test_the_others_have_as_many_parameters(system: str) -> None:
    model = SYSTEMS[system](MODELS[system], 2048, "sdpa").model
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(836_448, rel=0.02)


def test_our_training_reads_short_windows_first(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Once upon a time, a cat sat down and slept. <|endoftext|>" * 400)
    data = write_data(tmp_path / "text.txt", tmp_path) | {"vocab_size": 2048}
    job = our_job() | data | {"compile": False, "attention": "auto", "steps": 4, "points": 2}
    job |= {"model": job["model"] | {"d_model": 16, "num_layers": 1, "d_ff": 16, "context_length": 32}}
    learned = learning_curve(job | {"short_context_length": 8})
    first, last = learned["curve"]
    assert first["step"] == 2 and last["step"] == 4
    assert first["seconds"] > 0 and last["seconds"] > 0
    assert last["val_bits_per_byte"] < first["val_bits_per_byte"]


@pytest.mark.parametrize("system", ["transformers", "gpt2", "nanogpt"])
def test_the_others_read_windows_of_one_length(system: str) -> None:
    job = their_job(system, None)
    assert (job["windows"], job["short_fraction"]) == ("stream", 0.0)
    assert job["short_context_length"] == MODELS[system].context_length
