"""A loss or a gradient that is not finite: the step is skipped, or the run ends with the result of a divergence."""

import dataclasses
import math

import pytest

import lm.training.loop
from lm.training.loop import TrainingLoop
from tests.training.conftest import Stopped


def test_a_run_that_diverges_ends_with_the_model_of_its_last_evaluation(run, trained, undisturbed, monkeypatch, capsys):
    _, expected, _ = undisturbed(run)
    take_step = TrainingLoop._take_step

    def exploding(self, step):
        return take_step(self, step) if step < 11 else (math.nan, 1.0)

    monkeypatch.setattr(TrainingLoop, "_take_step", exploding)
    result = trained(run, "diverged")
    assert result.metrics["diverged"] == 1 and result.metrics["step"] == 8
    assert result.history == expected.history[:3]
    assert result.metrics["val_loss"] == expected.history[2]["val_loss"]
    assert "not finite after step 10" in capsys.readouterr().out


def not_finite_at(monkeypatch, steps):
    """Make the loss of these steps NaN; as in `TrainStep`, nothing else happens in them."""
    take_step = TrainingLoop._take_step
    monkeypatch.setattr(
        TrainingLoop,
        "_take_step",
        lambda self, step: (math.nan, 1.0) if step in steps else take_step(self, step),
    )


def test_steps_that_are_not_finite_are_skipped_as_often_as_allowed(run, trained, monkeypatch, capsys):
    allowed = dataclasses.replace(run, train=dataclasses.replace(run.train, max_skipped_steps=2))
    not_finite_at(monkeypatch, {3, 7})
    result = trained(allowed, "enough")
    assert result.metrics["diverged"] == 0 and result.metrics["step"] == 12
    assert result.metrics["skipped_steps"] == 2
    assert "step 7: skipped, because the loss or the gradient is not finite (2 of at most 2 skipped steps)" in (
        capsys.readouterr().out
    )
    not_finite_at(monkeypatch, {3, 7, 10})
    result = trained(allowed, "too often")
    assert result.metrics["diverged"] == 1 and result.metrics["step"] == 8


def test_a_finite_spike_is_never_skipped(run, trained, monkeypatch):
    allowed = dataclasses.replace(run, train=dataclasses.replace(run.train, max_skipped_steps=5, eval_every=1))
    take_step = TrainingLoop._take_step
    monkeypatch.setattr(
        TrainingLoop,
        "_take_step",
        lambda self, step: (1e30, 1e30) if step == 5 else take_step(self, step),
    )
    result = trained(allowed)
    assert result.history[5]["train_loss"] == 1e30 and result.metrics["skipped_steps"] == 0


def test_a_learning_rate_that_is_far_too_high_is_a_result(run, trained):
    wild = dataclasses.replace(run.optim, max_learning_rate=1e3, min_learning_rate=1e3, warmup_steps=0)
    result = trained(dataclasses.replace(run, optim=wild))
    assert result.metrics["diverged"] == 1
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert all(weight.isfinite().all() for weight in result.model.parameters())


@pytest.mark.parametrize("stopped", [False, True])
def test_a_model_that_is_not_finite_at_the_start_is_a_result(run, trained, monkeypatch, stopped):
    monkeypatch.setattr(lm.training.loop, "mean_loss", lambda *args: math.nan)
    if stopped:
        with monkeypatch.context() as patch:
            patch.setattr(TrainingLoop, "_return_to_last_evaluation", lambda self: (_ for _ in ()).throw(Stopped))
            with pytest.raises(Stopped):
                trained(run)
    result = trained(run)
    assert result.metrics["diverged"] == 1 and result.metrics["step"] == 0
    assert "val_loss" not in result.metrics and result.history[0]["val_loss"] is None
