import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

import lm.training.train_step
from lm.model.transformer import TransformerLM
from lm.training.optimizer import make_optimizer
from lm.training.train_step import TrainStep

SEPARATOR, LEARNING_RATE = 0, 1e-2


@pytest.fixture
def model(small) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(small, vocab_size=61)


@pytest.fixture
def batch(model) -> tuple[Tensor, Tensor]:
    """Six windows of inputs and targets, each with three documents that begin with a separator."""
    tokens = torch.randint(1, 61, (6, 17))
    tokens[:, [0, 5, 12]] = SEPARATOR
    return tokens[:, :-1], tokens[:, 1:]


def plain_step(model: TransformerLM, **options) -> TrainStep:
    """A step with gradient descent, which changes weights by their gradients and does not amplify rounding errors."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return TrainStep(model, optimizer, **{"precision": "float32", "max_grad_norm": 1e9, **options})


def cross_entropy(model: TransformerLM, inputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def weights(model: TransformerLM) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("max_grad_norm", [0.1, 1e9], ids=["clipped", "not clipped"])
def test_steps_equal_those_of_torchs_own_parts(model, batch, params, max_grad_norm):
    theirs = copy.deepcopy(model)
    optim = dataclasses.replace(params.optim, optimizer="adamw")
    train_step = TrainStep(model, make_optimizer(model, optim), precision="float32", max_grad_norm=max_grad_norm)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": params.optim.weight_decay},
            {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        betas=(params.optim.beta1, params.optim.beta2),
        eps=params.optim.eps,
    )
    for _ in range(3):
        loss, norm = train_step(*batch, LEARNING_RATE)
        expected = cross_entropy(theirs, *batch)
        optimizer.zero_grad()
        expected.backward()
        expected_norm = nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm)
        optimizer.step()
        assert (loss, norm) == pytest.approx((expected.item(), expected_norm.item()), rel=1e-5)
        torch.testing.assert_close(weights(model), weights(theirs), rtol=1e-4, atol=1e-5)
    assert norm > 0.1  # some steps were clipped


@pytest.mark.parametrize("micro_batch_size", [1, 4, 6, 100])
def test_micro_batches_give_the_step_of_the_whole_batch(model, batch, micro_batch_size):
    parts = copy.deepcopy(model)
    options = {"document_separator": SEPARATOR, "max_grad_norm": 0.5}
    expected = plain_step(model, **options)(*batch, LEARNING_RATE)
    measured = plain_step(parts, **options)(*batch, LEARNING_RATE, micro_batch_size)
    assert measured == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(weights(parts), weights(model), rtol=0, atol=1e-7)


def test_with_a_separator_every_document_is_a_separate_sequence(model, batch):
    apart = copy.deepcopy(model)
    documents = [tokens.split([5, 7, 4], dim=-1) for tokens in batch]
    loss = sum(
        cross_entropy(apart, inputs, targets) * inputs.shape[-1] / 16
        for inputs, targets in zip(*documents, strict=True)
    )
    loss.backward()
    torch.optim.SGD(apart.parameters(), lr=LEARNING_RATE).step()
    measured, _ = plain_step(model, document_separator=SEPARATOR)(*batch, LEARNING_RATE)
    assert measured == pytest.approx(loss.item(), rel=1e-6)
    assert measured != pytest.approx(cross_entropy(model, *batch).item(), rel=1e-3)
    torch.testing.assert_close(weights(model), weights(apart), rtol=0, atol=1e-6)


@pytest.mark.parametrize("which", ["loss", "norm"])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_moments(model, batch, params, monkeypatch, which):
    optimizer = make_optimizer(model, params.optim)
    train_step = TrainStep(model, optimizer, precision="float32", max_grad_norm=1.0)
    train_step(*batch, LEARNING_RATE)
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    with monkeypatch.context() as patch:
        if which == "loss":
            patch.setattr(train_step, "loss", lambda inputs, targets: cross_entropy(model, inputs, targets) * torch.inf)
        else:
            patch.setattr(
                lm.training.train_step, "clip_gradients", lambda parameters, max_norm: torch.tensor(torch.inf)
            )
        loss, norm = train_step(*batch, LEARNING_RATE)
    assert not torch.tensor(loss if which == "loss" else norm).isfinite()
    assert all(weight.equal(before[name]) for name, weight in model.named_parameters())
    for index, values in optimizer.state_dict()["state"].items():
        torch.testing.assert_close(values, state["state"][index], rtol=0, atol=0)
    train_step(*batch, LEARNING_RATE)  # the gradients have been discarded
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_bfloat16_is_close_to_float32_and_keeps_the_weights_in_it(model, batch):
    rounded = copy.deepcopy(model)
    exact = plain_step(model)(*batch, LEARNING_RATE)
    measured = plain_step(rounded, precision="bfloat16")(*batch, LEARNING_RATE)
    assert measured == pytest.approx(exact, rel=0.02) and measured != pytest.approx(exact, rel=1e-6)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in rounded.parameters())


@pytest.mark.slow  # the C++ compiler takes most of a minute
@pytest.mark.filterwarnings("ignore")  # torch.compile raises many
@pytest.mark.parametrize(
    ("backend", "document_separator"), [("sdpa", None), ("reference", SEPARATOR), ("flash", SEPARATOR)]
)
def test_compiled_steps_equal_eager_steps(small, batch, params, backend, document_separator):
    models, losses = [], []
    # With a tiny eps, AdamW takes a full step even for a gradient that is only a rounding error.
    optim = dataclasses.replace(params.optim, optimizer="adamw", eps=1e-2)
    for compile in (False, True):
        torch.manual_seed(0)
        model = TransformerLM(dataclasses.replace(small, qk_norm=True), 61, attention_backend=backend)
        optimizer = make_optimizer(model, optim)
        options = {"document_separator": document_separator, "compile": compile}
        train_step = TrainStep(model, optimizer, precision="float32", max_grad_norm=1.0, **options)
        losses.append([train_step(*batch, LEARNING_RATE, micro_batch_size=4) for _ in range(3)])
        models.append(weights(model))
    for ours, plain in zip(*losses, strict=True):
        assert ours == pytest.approx(plain, rel=1e-4)
    torch.testing.assert_close(*models, rtol=1e-4, atol=1e-5)
