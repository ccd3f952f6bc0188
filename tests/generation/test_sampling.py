from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.generation.config import SamplerConfig
from lm.generation.sampling import (
    add_bias,
    apply_temperature,
    distribution,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_frequency,
    penalize_repetition,
)


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def probabilities_of(logits: torch.Tensor) -> list[float]:
    return logits.softmax(-1).tolist()


def test_temperature_by_hand():
    # probabilities p^(1/T): squares at one half, roots at two
    assert probabilities_of(apply_temperature(logits_of(0.8, 0.2), 0.5)) == pytest.approx([64 / 68, 4 / 68])
    assert probabilities_of(apply_temperature(logits_of(0.8, 0.2), 2.0)) == pytest.approx([2 / 3, 1 / 3])


def test_temperature_zero_takes_the_first_of_the_most_likely(plain):
    greedy = replace(plain, temperature=0.0)
    assert distribution(torch.tensor([1.0, 3.0, 3.0]), torch.tensor([0]), greedy).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [(0, [0.1, 0.4, 0.2, 0.3]), (1, [0, 1, 0, 0]), (2, [0, 4 / 7, 0, 3 / 7]), (9, [0.1, 0.4, 0.2, 0.3])],
)
def test_top_k_by_hand(top_k, expected):
    assert probabilities_of(keep_top_k(logits_of(0.1, 0.4, 0.2, 0.3), top_k)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(1.0, [0.2, 0.5, 0.3]), (0.81, [0.2, 0.5, 0.3]), (0.7, [0, 5 / 8, 3 / 8]), (0.5, [0, 1, 0]), (1e-300, [0, 1, 0])],
)
def test_top_p_by_hand(top_p, expected):
    assert probabilities_of(keep_top_p(logits_of(0.2, 0.5, 0.3), top_p)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("min_p", "expected"),
    [(0.0, [0.2, 0.5, 0.3]), (0.4, [0.2, 0.5, 0.3]), (0.41, [0, 5 / 8, 3 / 8]), (0.7, [0, 1, 0]), (1.0, [0, 1, 0])],
)
def test_min_p_by_hand(min_p, expected):
    # 0.4 times the largest probability 0.5 is exactly 0.2. Use a little less, because float32 logarithms are rounded.
    assert probabilities_of(keep_min_p(logits_of(0.2, 0.5, 0.3), min_p * 0.9999)) == pytest.approx(expected)


def test_repetition_penalty_by_hand():
    logits = torch.tensor([2.0, -2.0, 2.0, -2.0])
    assert penalize_repetition(logits, torch.tensor([2, 3, 3, 2]), 2.0).tolist() == [2.0, -2.0, 1.0, -4.0]
    assert penalize_repetition(logits, torch.tensor([0]), 0.5).tolist() == [4.0, -2.0, 2.0, -2.0]


def test_presence_and_frequency_penalty_by_hand(plain):
    logits = torch.tensor([1.0, 2.0, 3.0])
    assert penalize_frequency(logits, torch.tensor([2, 0, 2]), 0.5, 0.25).tolist() == [0.25, 2.0, 2.0]
    assert penalize_frequency(logits, torch.tensor([], dtype=torch.long), 0.5, 0.25).tolist() == [1.0, 2.0, 3.0]
    # The first two tokens are the prompt, which does not count.
    penalized = distribution(logits, torch.tensor([2, 2, 0]), replace(plain, presence_penalty=1.0), prompt_length=2)
    torch.testing.assert_close(penalized, torch.tensor([0.0, 2.0, 3.0]).softmax(-1))


def test_bias_by_hand(plain):
    logits = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert add_bias(logits, {0: 2.5, 2: -100.0}).tolist() == [[3.5, 2.0, -97.0], [6.5, 5.0, -94.0]]
    forced = distribution(logits, torch.tensor([[0], [0]]), replace(plain, temperature=0.0, logit_bias={1: 100.0}))
    assert forced.tolist() == [[0, 1, 0], [0, 1, 0]]


def test_samplers_work_row_by_row(plain):
    rows = torch.stack((logits_of(0.6, 0.3, 0.1), logits_of(0.1, 0.2, 0.7)))
    seen = torch.tensor([[0], [0]])
    assert distribution(rows, seen, replace(plain, top_k=2)).tolist() == [
        pytest.approx([2 / 3, 1 / 3, 0]),
        pytest.approx([0, 2 / 9, 7 / 9]),
    ]
    for one in (replace(plain, top_p=0.6), replace(plain, min_p=0.6)):
        assert distribution(rows, seen, one).tolist() == [pytest.approx([1, 0, 0], abs=1e-6), [0, 0, 1]]
    penalized = distribution(rows, torch.tensor([[0], [2]]), replace(plain, repetition_penalty=2.0))
    # All logits are negative, so the probabilities of seen tokens are squared.
    assert penalized.tolist() == [
        pytest.approx([36 / 76, 30 / 76, 10 / 76]),
        pytest.approx([10 / 79, 20 / 79, 49 / 79]),
    ]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    penalty=st.floats(0.5, 2),
    temperature=st.floats(0.2, 3),
    top_k=st.integers(1, 20),
    top_p=st.floats(0.1, 0.99),
    min_p=st.floats(0.01, 0.5),
)
def test_the_distribution_is_the_one_of_transformers(seed, penalty, temperature, top_k, top_p, min_p):
    from transformers import (
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 20, generator=generator)
    seen = torch.randint(20, (2, 5), generator=generator)
    config = SamplerConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits)
    for warper in (
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(top_k),
        TopPLogitsWarper(top_p),
        MinPLogitsWarper(min_p),
    ):
        expected = warper(seen, expected)
    torch.testing.assert_close(distribution(logits, seen, config), expected.softmax(-1))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.8}, [4 / 9, 3 / 9, 2 / 9, 0]),
        ({"min_p": 0.6}, [4 / 7, 3 / 7, 0, 0]),
        ({"repetition_penalty": 2.0}, [16 / 76, 30 / 76, 20 / 76, 10 / 76]),  # the first token was seen
    ],
)
def test_draws_follow_the_distribution_worked_out_by_hand(changes, expected, plain):
    generator = torch.Generator().manual_seed(0)
    drawn_from = distribution(logits_of(0.4, 0.3, 0.2, 0.1), torch.tensor([0]), replace(plain, **changes))
    drawn = [draw(drawn_from.expand(2, 4), [generator, generator]) for _ in range(2500)]
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=4).double()
    wanted = 5000 * torch.tensor(expected, dtype=torch.float64)
    kept = wanted > 0
    assert counts[~kept].sum() == 0
    # chi-squared with at most 3 degrees of freedom, p = 0.001
    assert ((counts - wanted)[kept] ** 2 / wanted[kept]).sum() < 16.3


def test_top_p_keeps_tokens_equal_to_the_last_one_it_keeps():
    assert probabilities_of(keep_top_p(logits_of(0.5, 0.2, 0.2, 0.1), 0.6)) == pytest.approx([5 / 9, 2 / 9, 2 / 9, 0])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", 1e-4, "0, or 0.001 or more"),
        ("top_k", -1, "0 or more"),
        ("temperature", 1e3, "at most 100"),
        ("top_p", 0.0, "0.001 to 1"),
        ("min_p", 1.1, "0 to 1"),
        ("repetition_penalty", 1e-300, "0.1 to 10"),
        ("repetition_penalty", 11.0, "0.1 to 10"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value, expected, plain):
    with pytest.raises(ValueError, match=f"^{name}: expected {expected}, got {value}$"):
        replace(plain, **{name: value})
