import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lm.training.adamw import AdamW
from lm.training.muon import Muon, orthogonalize

SHAPES = [(8, 8), (6, 15), (15, 6), (8, 8)]


def polynomials_of_singular_values(matrix: Tensor) -> Tensor:
    """What the iteration computes, from the decomposition and in float64: U f(f(f(f(f(S / norm))))) V^T."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vh


def weights(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]


def take_steps(optimizer: torch.optim.Optimizer, seed: int, count: int) -> None:
    """Take steps with gradients that depend only on the seed and the shapes of the parameters."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (3, 10), (32, 80)])
def test_the_iteration_changes_only_the_singular_values(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([polynomials_of_singular_values(matrix) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices).double(), expected, rtol=1e-3, atol=1e-4)


def test_the_worked_example():
    matrix = orthogonalize(torch.diag(torch.tensor([3.0, 4.0]))[None])[0]
    torch.testing.assert_close(matrix, torch.diag(torch.tensor([0.72, 1.12])), rtol=0, atol=0.005)


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    rows=st.integers(1, 12),
    more_columns=st.integers(0, 12),
    smallest=st.floats(0.02, 1),
    size=st.floats(1e-4, 1e4),
    seed=st.integers(0, 2**31),
)
def test_singular_values_come_close_to_one_and_vectors_do_not_change(dtype, rows, more_columns, smallest, size, seed):
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(rows, rows + more_columns, generator=generator, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(random, full_matrices=False)
    s = torch.linspace(1, smallest, rows, dtype=torch.float64)
    result = orthogonalize((size * (u * s) @ vh).float()[None], dtype)[0]
    assert result.dtype == torch.float32
    turned = u.T @ result.double() @ vh.T
    assert (turned - turned.diag().diag()).abs().max() < (1e-3 if dtype == torch.float32 else 0.06)
    assert turned.diag().min() > 0.65 and turned.diag().max() < 1.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_steps_equal_torchs(dtype):
    """PyTorch always iterates in bfloat16, with 8 bits of mantissa, so ten steps agree within a few percent."""
    ours, theirs, start = weights(), weights(), weights()
    options = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    take_steps(Muon(ours, [], dtype=dtype, **options), 1, 10)
    take_steps(torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options), 1, 10)
    for mine, other, before in zip(ours, theirs, start):
        assert (mine - other).norm() < 0.03 * (mine - before).norm()


def test_the_products_are_computed_in_the_given_dtype():
    directions = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.zeros(6, 15, requires_grad=True)
        take_steps(Muon([weight], [], lr=1.0, dtype=dtype), 1, 1)
        directions.append(weight.detach() / (0.2 * 15**0.5))
    exact, rounded = directions
    assert 1e-4 < (exact - rounded).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("cautious", [False, True])
def test_many_steps_equal_a_plain_loop_over_the_matrices(cautious):
    ours, plain = weights(), [w.detach().double() for w in weights()]
    options = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1, "cautious": cautious}
    take_steps(Muon(ours, [], dtype=torch.float32, **options), 1, 10)
    velocities = [torch.zeros_like(w) for w in plain]
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        for w, velocity in zip(plain, velocities):
            gradient = torch.randn(w.shape, generator=generator).double()
            velocity.mul_(0.9).add_(gradient)  # not averaged, as originally published; the direction is the same
            direction = polynomials_of_singular_values(gradient + 0.9 * velocity)
            decayed = w * (direction * w >= 0) if cautious else w
            w.copy_(w - 0.02 * (0.1 * decayed + 0.2 * max(w.shape) ** 0.5 * direction))
    for mine, other in zip(ours, plain):
        torch.testing.assert_close(mine.detach().double(), other, rtol=1e-3, atol=1e-4)


def test_the_first_step_by_hand():
    weight = torch.tensor([[2.0, 0.0]], requires_grad=True)
    optimizer = Muon([weight], [], lr=0.1, weight_decay=0.5, dtype=torch.float32)
    weight.grad = torch.tensor([[-300.0, 0.0]])
    optimizer.step()
    f = 1.0  # a single row is scaled to norm 1, and then five times by the polynomial
    for _ in range(5):
        f = 3.4445 * f - 4.7750 * f**3 + 2.0315 * f**5
    assert weight.tolist()[0] == pytest.approx([2 - 0.1 * 0.5 * 2 + 0.1 * 0.2 * 2**0.5 * f, 0.0])


def test_an_update_has_the_size_of_adamws():
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(64, 160, requires_grad=True)
    weight.grad = torch.randn(64, 160, generator=generator)
    Muon([weight], [], lr=1.0).step()
    assert 0.15 < weight.square().mean().sqrt().item() < 0.25  # AdamW's is 0.2 to 0.4 (Liu et al. 2025, 2.2)


def test_without_a_gradient_or_with_zeros_nothing_changes():
    unused, still = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    still.grad = torch.zeros(2, 3)
    Muon([unused, still], [], weight_decay=0.0).step()
    assert torch.equal(unused, torch.ones(2, 3)) and torch.equal(still, torch.ones(2, 3))


def test_the_other_groups_are_updated_as_by_adamw():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, generator=generator)
    matrix = torch.randn(4, 4, generator=generator).requires_grad_()
    beside, alone = start.clone().requires_grad_(), start.clone().requires_grad_()
    options = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6}
    muon = Muon([matrix], [{"params": [beside], "weight_decay": 0.0}], **options)
    adamw = AdamW([alone], weight_decay=0.0, **options)
    for _ in range(3):
        matrix.grad = torch.randn(4, 4, generator=generator)
        beside.grad = torch.randn(5, generator=generator)
        alone.grad = beside.grad.clone()
        muon.step()
        adamw.step()
    assert torch.equal(beside, alone)


def test_another_optimizer_continues_from_the_state():
    def make(params: list[Tensor], lr: float) -> Muon:
        return Muon(params[1:], [{"params": params[:1], "weight_decay": 0.0}], lr=lr)

    ours, others = weights(), weights(seed=5)
    optimizer, other = make(ours, 0.1), make(others, 0.5)
    take_steps(optimizer, 1, 3)
    state = optimizer.state_dict()
    groups = json.loads(json.dumps(state["param_groups"]))  # a checkpoint holds them as JSON
    other.load_state_dict({"state": copy.deepcopy(state["state"]), "param_groups": groups})
    with torch.no_grad():
        for mine, theirs in zip(ours, others):
            theirs.copy_(mine)
    take_steps(optimizer, 2, 2)
    take_steps(other, 2, 2)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, others))


def test_parameters_that_are_not_matrices_are_refused():
    with pytest.raises(ValueError, match=r"matrices.*\(3,\)"):
        Muon([torch.zeros(3, requires_grad=True)], [])
