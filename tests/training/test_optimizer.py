import dataclasses

import pytest
import torch

from lm.model.transformer import TransformerLM
from lm.training.adamw import AdamW
from lm.training.muon import Muon
from lm.training.optimizer import clip_gradients, decay_groups, make_optimizer


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_matrices_decay_and_norms_do_not(small, tie_embeddings):
    model = TransformerLM(dataclasses.replace(small, tie_embeddings=tie_embeddings), vocab_size=61)
    decayed, kept = decay_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {names[id(p)] for p in kept["params"]} == {name for name in names.values() if "ln" in name}
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_the_weights_of_canon_layers_are_treated_as_gains(small, params):
    model = TransformerLM(dataclasses.replace(small, canon=True), vocab_size=61)
    canon = {id(p) for name, p in model.named_parameters() if "canon" in name}
    assert len(canon) == 4 and canon <= {id(p) for p in decay_groups(model, 0.1)[1]["params"]}
    by_muon, decayed, kept = make_optimizer(model, dataclasses.replace(params.optim, optimizer="muon")).param_groups
    assert canon <= {id(p) for p in kept["params"]} and kept["weight_decay"] == 0
    assert len(by_muon["params"]) == 14 and len(decayed["params"]) == 2


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_cautious_weight_decay_is_that_of_the_configuration(small, params, name):
    for cautious in (False, True):
        optim = dataclasses.replace(params.optim, optimizer=name, cautious_weight_decay=cautious)
        assert make_optimizer(TransformerLM(small, vocab_size=61), optim).cautious == cautious


def test_adamw_updates_every_parameter_with_the_configured_numbers(small, params):
    model = TransformerLM(small, vocab_size=61)
    optim = dataclasses.replace(params.optim, optimizer="adamw", beta1=0.8, beta2=0.9, eps=1e-4, weight_decay=0.3)
    optimizer = make_optimizer(model, optim)
    assert type(optimizer) is AdamW
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert all((group["betas"], group["eps"]) == ((0.8, 0.9), 1e-4) for group in optimizer.param_groups)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_muon_updates_the_matrices_of_the_blocks_and_adamw_the_rest(small, params, tie_embeddings):
    config = dataclasses.replace(
        small, tie_embeddings=tie_embeddings, norm="layernorm", position="learned", qk_norm=True
    )
    model = TransformerLM(config, vocab_size=61)
    optim = dataclasses.replace(params.optim, optimizer="muon", momentum=0.9, weight_decay=0.3)
    optimizer = make_optimizer(model, optim)
    names = {id(p): name for name, p in model.named_parameters()}
    by_muon, decayed, kept = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    assert type(optimizer) is Muon
    assert set(by_muon) == {name for name in names.values() if "_proj." in name or ".ffn." in name}
    head = [] if tie_embeddings else ["lm_head.weight"]
    assert sorted(decayed) == sorted(["token_embeddings.weight", "position_embeddings.weight", *head])
    assert set(kept) == {name for name in names.values() if "ln" in name or "_norm." in name}
    assert len(by_muon) + len(decayed) + len(kept) == len(names)
    assert [group.get("momentum") for group in optimizer.param_groups] == [0.9, None, None]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3, 0.0]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_lowers_the_loss_and_changes_every_parameter(small, params, name):
    torch.manual_seed(0)
    model = TransformerLM(small, vocab_size=61)
    optimizer = make_optimizer(model, dataclasses.replace(params.optim, optimizer=name))
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    ids = torch.randint(0, 61, (4, 17))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert all((p != before[name]).any() for name, p in model.named_parameters())


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_equals_torchs(max_norm):
    torch.manual_seed(0)
    ours = [
        torch.randn(3, 4, requires_grad=True),
        torch.randn(5, requires_grad=True),
        torch.zeros(2, requires_grad=True),
    ]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    for mine, other in zip(ours[:2], theirs[:2]):
        mine.grad = torch.randn_like(mine)
        other.grad = mine.grad.clone()
    norm = clip_gradients(ours, max_norm)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, max_norm))
    torch.testing.assert_close([p.grad for p in ours[:2]], [p.grad for p in theirs[:2]])


def test_gradients_below_the_limit_do_not_change():
    p = torch.zeros(2, requires_grad=True)
    p.grad = torch.tensor([0.3, -0.1])
    assert clip_gradients([p], 1.0).item() == pytest.approx(0.1**0.5)
    assert torch.equal(p.grad, torch.tensor([0.3, -0.1]))


def test_a_gradient_that_is_not_finite_shows_in_the_norm():
    p = torch.zeros(2, requires_grad=True)
    p.grad = torch.tensor([1.0, float("nan")])
    assert clip_gradients([p], 1.0).isnan()
