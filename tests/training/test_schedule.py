import dataclasses

import pytest
import torch

from lm.training.schedule import cosine, learning_rate, warmup_stable_decay


def test_cosine_by_hand():
    rates = [cosine(step, 1.0, 0.1, warmup_steps=7, last_step=21) for step in (0, 1, 7, 14, 21, 30)]
    assert rates == pytest.approx([0, 1 / 7, 1, 0.55, 0.1, 0.1])


def test_cosine_equals_torchs_after_the_warmup():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    for step in range(51):
        assert cosine(step, 1.0, 0.1, warmup_steps=0, last_step=50) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_warmup_stable_decay_by_hand():
    rates = [warmup_stable_decay(step, 1.0, 0.2, 10, 4, 20) for step in (0, 5, 10, 16, 18, 20, 25)]
    assert rates == pytest.approx([0, 0.5, 1, 1, 0.6, 0.2, 0.2])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        # After a quarter, a half and three quarters of the decay from 1 to 0.2.
        ("linear", [0.8, 0.6, 0.4]),
        ("1-sqrt", [0.6, 1 - 0.8 / 2**0.5, 1 - 0.8 * 3**0.5 / 2]),
    ],
)
def test_the_shapes_of_the_decay_by_hand(shape, expected):
    rates = [warmup_stable_decay(step, 1.0, 0.2, 2, 4, 20, shape) for step in (1, 2, 16, 17, 18, 19, 20)]
    assert rates == pytest.approx([0.5, 1, 1, *expected, 0.2])


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
def test_the_configured_shape_is_used(params, shape):
    optim = dataclasses.replace(params.optim, schedule="wsd", warmup_steps=2, decay_steps=4, decay_shape=shape)
    bounds = optim.max_learning_rate, optim.min_learning_rate
    assert learning_rate(17, optim, 20) == warmup_stable_decay(17, *bounds, 2, 4, 20, shape)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_last_step_has_the_minimum_and_the_end_of_warmup_the_maximum(params, schedule):
    optim = dataclasses.replace(params.optim, schedule=schedule, warmup_steps=5, decay_steps=3)
    assert learning_rate(5, optim, 20) == pytest.approx(optim.max_learning_rate)
    assert learning_rate(20, optim, 20) == pytest.approx(optim.min_learning_rate)


def test_warmup_and_decay_may_have_no_steps():
    assert cosine(0, 1.0, 0.0, 0, 10) == 1
    assert warmup_stable_decay(9, 1.0, 0.0, 0, 0, 10) == 1
