import dataclasses

import pytest
import torch

from lm.training.schedule import cosine, learning_rate, warmup_stable_decay


def test_cosine_by_hand():
    rates = [cosine(step, 1.0, 0.1, warmup_steps=7, last_step=21) for step in (0, 1, 7, 14, 21, 30)]
    assert rates == pytest.approx([0, 1 / 7, 1, 0.55, 0.1, 0.1])


def test_cosine_equals_torchs_after_the_warm_up():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    for step in range(51):
        assert cosine(step, 1.0, 0.1, warmup_steps=0, last_step=50) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_warmup_stable_decay_by_hand():
    rates = [warmup_stable_decay(step, 1.0, 0.2, 10, 4, 20) for step in (0, 5, 10, 16, 18, 20, 25)]
    assert rates == pytest.approx([0, 0.5, 1, 1, 0.6, 0.2, 0.2])


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_last_update_has_the_minimum_and_the_end_of_warm_up_the_maximum(params, schedule):
    optim = dataclasses.replace(params.optim, schedule=schedule, warmup_steps=5, decay_steps=3)
    assert learning_rate(5, optim, 20) == pytest.approx(optim.max_learning_rate)
    assert learning_rate(20, optim, 20) == pytest.approx(optim.min_learning_rate)


def test_no_warm_up_and_no_decay_are_allowed():
    assert cosine(0, 1.0, 0.0, 0, 10) == 1
    assert warmup_stable_decay(9, 1.0, 0.0, 0, 0, 10) == 1
