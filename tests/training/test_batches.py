import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lm.training import batches
from lm.training.batches import batch, document_starts, permute, window_starts


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 1000))
def test_permute_is_a_permutation(n, seed, epoch):
    assert sorted(permute(np.arange(n), n, (seed, epoch))) == list(range(n))


def test_permute_works_for_ranges_that_do_not_fit_in_memory():
    n = 10**15
    values = permute(np.arange(1000), n, (1, 0))
    assert len(set(values.tolist())) == 1000 and values.min() >= 0 and values.max() < n
    # uniform over the range: the mean of 1,000 draws is within 5 standard deviations of the middle
    assert abs(values.mean() / n - 0.5) < 5 * math.sqrt(1 / 12 / 1000)


def test_all_permutations_are_equally_likely():
    counts = Counter(tuple(permute(np.arange(4), 4, (seed, 0)).tolist()) for seed in range(4800))
    assert len(counts) == 24
    chi_square = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_square < 49.7  # 23 degrees of freedom, p = 0.001


def test_every_epoch_visits_every_window_once_in_another_order():
    tokens, length, size = np.arange(8 * 12 + 3, dtype=np.uint16), 8, 4
    starts = window_starts(tokens, "stream", length, 0)
    assert list(starts) == list(range(0, 96, 8))
    epochs = []
    for first in (0, 3):
        batches = [batch(tokens, starts, step, size, length, seed=5) for step in range(first, first + 3)]
        epochs.append([start for inputs, _ in batches for start in inputs[:, 0].tolist()])
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(0, 96, 8))
    assert epochs[0] != epochs[1]


def test_a_batch_is_windows_and_their_next_tokens():
    tokens = np.arange(100, dtype=np.uint16)
    inputs, targets = batch(tokens, range(0, 90, 7), step=2, batch_size=3, length=7, seed=1)
    assert inputs.shape == targets.shape == (3, 7)
    for row, target in zip(inputs.tolist(), targets.tolist()):
        assert row == list(range(row[0], row[0] + 7)) and target == [token + 1 for token in row]


@pytest.mark.parametrize("size", [1, 5, 7, 30])
def test_a_batch_may_be_larger_than_an_epoch(size):
    tokens = np.arange(8 * 5 + 1, dtype=np.uint32)
    starts = [
        start for step in range(6) for start in batch(tokens, range(0, 40, 8), step, size, 8, 3)[0][:, 0].tolist()
    ]
    for first in range(0, len(starts) - 4, 5):
        assert sorted(starts[first : first + 5]) == [0, 8, 16, 24, 32]


STARTS = range(0, 992, 8)


def test_batches_depend_only_on_seed_and_step():
    tokens = np.arange(1000, dtype=np.uint16)
    same = [batch(tokens, STARTS, 3, 4, 8, seed=1)[0] for _ in range(2)]
    assert same[0].equal(same[1])
    assert not same[0].equal(batch(tokens, STARTS, 3, 4, 8, seed=2)[0])
    assert not same[0].equal(batch(tokens, STARTS, 4, 4, 8, seed=1)[0])


def test_window_starts_by_hand():
    tokens = np.array([5, 0, 6, 7, 8, 9, 0, 4, 4])
    assert list(window_starts(tokens, "stream", 2, end_of_text_id=0)) == [0, 2, 4, 6]
    assert list(window_starts(tokens, "documents", 2, end_of_text_id=0)) == [0, 1, 3, 5, 6]
    assert list(window_starts(tokens, "documents", 8, end_of_text_id=0)) == [0]


@given(st.lists(st.integers(0, 4), min_size=3, max_size=60), st.integers(1, 8), st.sampled_from([1, 3, 1 << 24]))
def test_document_windows_begin_with_documents_and_cover_all_tokens_but_the_last_ones(ids, length, size):
    assume(len(ids) > length)
    tokens = np.array(ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "_SLICE", size)
        starts = window_starts(tokens, "documents", length, end_of_text_id=0)
    assert starts[0] == 0 and all(np.diff(starts) > 0)
    document, expected = 0, []
    for position, token in enumerate(ids):
        if token == 0:
            document = position
        if (position - document) % length == 0 and position + length < len(ids):
            expected.append(position)
    assert [int(start) for start in starts] == expected
    targets = {position + 1 for start in starts for position in range(start, start + length)}
    assert targets >= set(range(1, len(ids) - length))


def test_short_rows_are_the_beginnings_of_windows():
    tokens = np.arange(100, dtype=np.uint16)
    long, _ = batch(tokens, range(0, 90, 9), step=1, batch_size=4, length=9, seed=1)
    short, _ = batch(tokens, range(0, 90, 9), step=1, batch_size=4, length=3, seed=1)
    assert long[:, :3].equal(short)


def test_document_starts_by_hand():
    windows = torch.tensor([[5, 6, 0, 7, 8, 0], [0, 0, 5, 6, 7, 8], [5, 6, 7, 8, 9, 1]])
    expected = [[0, 0, 2, 2, 2, 5], [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]
    assert document_starts(windows, separator=0).tolist() == expected
    assert document_starts(windows[0], separator=0).tolist() == expected[0]
    assert document_starts(windows, separator=0).dtype == torch.int64


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 3))
def test_document_starts_equal_a_walk_through_the_window(token_ids, separator):
    start, starts = 0, []
    for position, token in enumerate(token_ids):
        start = position if token == separator else start
        starts.append(start)
    windows = torch.tensor([token_ids, token_ids[::-1]])
    assert document_starts(windows, separator)[0].tolist() == starts
