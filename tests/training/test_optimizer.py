import dataclasses

import pytest
import torch

from lm.model.transformer import TransformerLM
from lm.training.optimizer import AdamW, clip_gradients, decay_groups


def test_adamw_equals_torchs_over_many_steps():
    torch.manual_seed(0)
    start = [torch.randn(4, 3), torch.randn(5)]
    results = []
    for kind in (AdamW, torch.optim.AdamW):
        weights = [w.clone().requires_grad_() for w in start]
        optimizer = kind(weights, lr=0.02, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)
        torch.manual_seed(1)
        for _ in range(30):
            optimizer.zero_grad()
            sum(((w - torch.randn_like(w)) ** 2).sum() for w in weights).backward()
            optimizer.step()
        results.append(weights)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_the_first_step_by_hand():
    weight = torch.tensor([2.0], requires_grad=True)
    optimizer = AdamW([weight], lr=0.1, betas=(0.9, 0.99), eps=0.0, weight_decay=0.5)
    weight.grad = torch.tensor([7.0])
    optimizer.step()
    # corrected moments are g and g², so that the step is lr · sign(g), besides the decay lr · 0.5 · 2
    assert weight.item() == pytest.approx(2 - 0.1 * 0.5 * 2 - 0.1)


def test_parameters_without_gradient_stay():
    used, unused = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    optimizer = AdamW([used, unused])
    used.grad = torch.ones(1)
    optimizer.step()
    assert used.item() != 1 and unused.item() == 1


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_matrices_decay_and_norms_do_not(small, tie_embeddings):
    model = TransformerLM(dataclasses.replace(small, tie_embeddings=tie_embeddings), vocab_size=61)
    decayed, kept = decay_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {names[id(p)] for p in kept["params"]} == {name for name in names.values() if "ln" in name}
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


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
