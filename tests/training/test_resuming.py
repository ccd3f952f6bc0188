"""A run that is stopped at any point and started again has the bits of a run that was not stopped."""

import dataclasses

import pytest

import lm.training.train
from lm.errors import UserError
from lm.training.loop import TrainingLoop
from lm.training.train import train
from tests.training.conftest import Stopped, weights_of


@pytest.fixture
def assert_resumes_when_stopped(undisturbed, trained, tmp_path, monkeypatch):
    """Stop `run` after some steps, and resume it: the result must have the bits of a run that was not stopped."""

    def assert_resumes(run, steps):
        weights, expected, curve = undisturbed(run)
        take_step, count = TrainingLoop._take_step, 0

        def stopping(self, step):
            nonlocal count
            if count == steps:
                raise Stopped
            count += 1
            return take_step(self, step)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingLoop, "_take_step", stopping)
            with pytest.raises(Stopped):
                trained(run, "stopped")
        result = trained(run, "stopped")
        for name, weight in weights_of(result).items():
            assert weight.equal(weights[name]), name
        assert result.history == expected.history and result.metrics == expected.metrics
        assert (tmp_path / "stopped" / "curve.csv").read_bytes() == curve

    return assert_resumes


# A checkpoint follows steps 3, 6 and 9, and an evaluation with a checkpoint follows steps 0, 4, 8 and 12.
@pytest.mark.parametrize(
    "steps", [0, 3, 4, 7, 11, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (1, 2, 5, 6, 8, 9, 10))]
)
def test_a_run_stopped_after_any_step_resumes_bit_for_bit(run, assert_resumes_when_stopped, steps):
    assert_resumes_when_stopped(run, steps)


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": {"optimizer": "muon", "schedule": "wsd", "decay_steps": 6, "decay_shape": "1-sqrt"}},
        {
            "model": {"qk_norm": True, "tie_embeddings": True, "ffn": "silu"},
            "train": {"document_mask": True, "precision": "bfloat16"},
        },
    ],
    ids=["muon", "documents"],
)
def test_a_stopped_run_with_other_switches_resumes_bit_for_bit(run, assert_resumes_when_stopped, changes):
    sections = {name: dataclasses.replace(getattr(run, name), **values) for name, values in changes.items()}
    assert_resumes_when_stopped(dataclasses.replace(run, **sections), 7)


@pytest.mark.parametrize("stop_at", [3, 5, 8])
def test_a_run_with_short_windows_resumes_with_the_same_bits(short_first, assert_resumes_when_stopped, stop_at):
    assert_resumes_when_stopped(short_first, stop_at)


def test_a_run_stopped_while_its_outputs_are_written_only_writes_them_again(
    run, data, tokenizer, runtime, paths_in, trained, undisturbed, tmp_path, monkeypatch
):
    _, expected, curve = undisturbed(run)

    def stopped_write(result):
        raise Stopped

    folder = tmp_path / "stopped"
    folder.mkdir()
    with pytest.raises(Stopped):
        train(run, data, tokenizer, runtime, paths_in(folder), stopped_write)
    (folder / "curve.csv").unlink()  # as dvc does before it runs a stage again
    monkeypatch.setattr(TrainingLoop, "_take_step", None)
    result = trained(run, "stopped")
    assert result.history == expected.history
    assert (folder / "curve.csv").read_bytes() == curve
    assert list((folder / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("section", "change"),
    [("model", {"rope_theta": 9.0}), ("optim", {"beta2": 0.9}), ("train", {"seed": 7}), ("data", {"identity": "y"})],
)
def test_a_checkpoint_of_another_run_is_not_resumed(run, data, trained, tmp_path, monkeypatch, section, change):
    monkeypatch.setattr(lm.training.train.Checkpoints, "finish", lambda self: None)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, max_steps=1))
    trained(run)
    folders = set((tmp_path / "run" / "checkpoints").iterdir())
    trained(run)
    assert set((tmp_path / "run" / "checkpoints").iterdir()) == folders
    if section == "data":
        trained(run, data=dataclasses.replace(data, **change))
    else:
        trained(dataclasses.replace(run, **{section: dataclasses.replace(getattr(run, section), **change)}))
    assert len(set((tmp_path / "run" / "checkpoints").iterdir())) == 2


def test_the_same_run_is_refused_while_it_is_training(run, trained, monkeypatch):
    def second(self, step):
        with pytest.raises(UserError, match="another process is training the same run"):
            trained(run)
        raise Stopped

    monkeypatch.setattr(TrainingLoop, "_take_step", second)
    with pytest.raises(Stopped):
        trained(run)
