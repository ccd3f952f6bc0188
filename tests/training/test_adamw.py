import copy

import pytest
import torch

from lm.device import why_not_compile
from lm.training.adamw import AdamW, decay


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_adamw_equals_torchs_over_many_steps(eps):
    torch.manual_seed(0)
    start = [torch.randn(4, 3), torch.randn(5)]
    results = []
    for kind in (AdamW, torch.optim.AdamW):
        weights = [w.clone().requires_grad_() for w in start]
        optimizer = kind(weights, lr=0.02, betas=(0.9, 0.95), eps=eps, weight_decay=0.1)
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
    # the corrected moments are g and g², so the step is lr · sign(g), plus the decay lr · 0.5 · 2
    assert weight.item() == pytest.approx(2 - 0.1 * 0.5 * 2 - 0.1)


def test_cautious_decay_equals_a_loop_over_the_coordinates():
    """Chen et al. 2025, algorithm 1 with the moments of Adam, in plain numbers."""
    torch.manual_seed(0)
    weight = torch.randn(20, requires_grad=True)
    optimizer = AdamW([weight], lr=0.02, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.5, cautious=True)
    plain, first, second, num_decayed = weight.tolist(), [0.0] * 20, [0.0] * 20, 0
    for t in range(1, 11):
        weight.grad = torch.randn(20)
        for i, g in enumerate(weight.grad.tolist()):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.95 * second[i] + 0.05 * g * g
            update = first[i] / (1 - 0.9**t) / ((second[i] / (1 - 0.95**t)) ** 0.5 + 1e-6)
            decays = update * plain[i] >= 0
            num_decayed += decays
            plain[i] -= 0.02 * (update + (0.5 * plain[i] if decays else 0))
        optimizer.step()
    assert 50 < num_decayed < 150
    assert weight.tolist() == pytest.approx(plain, rel=1e-4, abs=1e-5)


def test_decay_by_hand():
    update = torch.tensor([1.0, -1.0, -1.0, 0.0, 1e-30])
    p = torch.tensor([2.0, 2.0, -2.0, 2.0, -1e-30])  # the last product is below the smallest float32
    for cautious, expected in ((True, [1.0, 2.0, -1.0, 1.0, -1e-30]), (False, [1.0, 1.0, -1.0, 1.0, -0.5e-30])):
        q = p.clone()
        decay(q, update, 0.5, cautious)
        torch.testing.assert_close(q, torch.tensor(expected), rtol=1e-6, atol=0)


def test_parameters_without_a_gradient_do_not_change():
    used, unused = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    optimizer = AdamW([used, unused])
    used.grad = torch.ones(1)
    optimizer.step()
    assert used.item() != 1 and unused.item() == 1


def test_each_parameter_counts_its_own_steps():
    """The bias correction of a parameter starts with its first gradient, as in PyTorch."""
    results = []
    for kind in (AdamW, torch.optim.AdamW):
        torch.manual_seed(0)
        early, late = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
        optimizer = kind([early, late], lr=0.1)
        for step in range(4):
            early.grad = torch.randn(3)
            late.grad = torch.randn(3) if step >= 2 else None
            optimizer.step()
        results.append([early, late])
    torch.testing.assert_close(*results)


def test_the_memory_layout_of_a_gradient_does_not_matter():
    torch.manual_seed(0)
    gradient = torch.randn(4, 6)
    weights = []
    for laid_out in (gradient, gradient.T.contiguous().T):
        weight = torch.ones(4, 6, requires_grad=True)
        weight.grad = laid_out
        AdamW([weight]).step()
        weights.append(weight)
    assert torch.equal(*weights)


def test_another_optimizer_continues_from_the_state():
    torch.manual_seed(0)
    weight = torch.randn(4, 3, requires_grad=True)
    optimizer = AdamW([weight], lr=0.1)
    weight.grad = torch.randn(4, 3)
    optimizer.step()
    other = weight.detach().clone().requires_grad_()
    other_optimizer = AdamW([other], lr=0.5)
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    weight.grad = torch.randn(4, 3)
    other.grad = weight.grad.clone()
    optimizer.step()
    other_optimizer.step()
    assert torch.equal(weight, other)


def test_a_closure_is_evaluated_with_gradients_before_the_step():
    weight = torch.tensor([1.0], requires_grad=True)
    optimizer = AdamW([weight], lr=0.1, weight_decay=0.0)

    def closure() -> float:
        loss = (weight**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 1
    assert weight.item() == pytest.approx(0.9)


def test_a_learning_rate_of_zero_moves_nothing():
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    weight.grad = torch.tensor([3.0, 0.0])
    AdamW([weight], lr=0.0).step()
    assert weight.tolist() == [1.0, -2.0]


@pytest.mark.slow  # the C++ compiler takes long
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("cautious", [False, True])
def test_the_compiled_update_equals_the_plain_one_and_is_compiled_once(cautious):
    if reason := why_not_compile(torch.device("cpu")):
        pytest.skip(reason)
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        weights = [torch.randn(4, 3, requires_grad=True), torch.randn(5, requires_grad=True)]
        optimizer = AdamW(weights, eps=1e-6, weight_decay=0.1, cautious=cautious)
        if compiled:
            optimizer.compile()
        for step in range(5):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + step)
            for w in weights:
                w.grad = torch.randn_like(w)
            with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
                optimizer.step()
        results.append(weights)
    torch.testing.assert_close(*results)
