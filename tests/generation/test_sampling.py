import pytest
import torch

from lm.generation.sampling import apply_temperature, distribution, keep_top_k, keep_top_p


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def probabilities_of(logits: torch.Tensor) -> list[float]:
    return logits.softmax(-1).tolist()


def test_temperature_by_hand():
    # probabilities p^(1/T): squares at one half, roots at two
    assert probabilities_of(apply_temperature(logits_of(0.8, 0.2), 0.5)) == pytest.approx([64 / 68, 4 / 68])
    assert probabilities_of(apply_temperature(logits_of(0.8, 0.2), 2.0)) == pytest.approx([2 / 3, 1 / 3])


def test_temperature_zero_is_greedy_and_takes_the_first_of_equals():
    assert distribution(torch.tensor([1.0, 3.0, 3.0]), 0, 0, 1).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [(0, [0.1, 0.4, 0.2, 0.3]), (1, [0, 1, 0, 0]), (2, [0, 4 / 7, 0, 3 / 7]), (9, [0.1, 0.4, 0.2, 0.3])],
)
def test_top_k_by_hand(top_k, expected):
    assert probabilities_of(keep_top_k(logits_of(0.1, 0.4, 0.2, 0.3), top_k)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(1.0, [0.2, 0.5, 0.3]), (0.81, [0.2, 0.5, 0.3]), (0.7, [0, 5 / 8, 3 / 8]), (0.5, [0, 1, 0]), (0.01, [0, 1, 0])],
)
def test_top_p_by_hand(top_p, expected):
    assert probabilities_of(keep_top_p(logits_of(0.2, 0.5, 0.3), top_p)) == pytest.approx(expected)


def test_samplers_work_row_by_row():
    rows = torch.stack((logits_of(0.6, 0.3, 0.1), logits_of(0.1, 0.2, 0.7)))
    assert distribution(rows, 1.0, 2, 1.0).tolist() == [
        pytest.approx([2 / 3, 1 / 3, 0]),
        pytest.approx([0, 2 / 9, 7 / 9]),
    ]
    assert distribution(rows, 1.0, 0, 0.6).tolist() == [pytest.approx([1, 0, 0], abs=1e-6), [0, 0, 1]]


def test_draws_follow_the_distribution():
    torch.manual_seed(0)
    expected = distribution(logits_of(0.4, 0.3, 0.2, 0.1), 0.7, 3, 0.95)
    draws = torch.multinomial(expected, 20_000, replacement=True)
    counts = torch.bincount(draws, minlength=4).double()
    assert counts[3] == 0
    kept = expected[:3].double() * 20_000
    assert ((counts[:3] - kept) ** 2 / kept).sum() < 13.8  # 2 degrees of freedom, p = 0.001
