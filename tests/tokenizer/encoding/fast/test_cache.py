"""A cache that several threads read, fill and replace at the same time."""

import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from lm.tokenizer.encoding.fast import cache, library
from lm.tokenizer.encoding.fast.cache import Cache, SharedCache
from lm.tokenizer.encoding.fast.constants import LOCK
from lm.tokenizer.text.fast.constants import MAX_KEYS, NUM_KEYS
from lm.tokenizer.tokenizer import Tokenizer

MODULE = "lm.tokenizer.encoding.codec"

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}._MIN_LENGTH_TO_COMPILE", 0)


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Let the threads take turns in Python every few microseconds."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def words(seed: int, num_words: int) -> str:
    """Return words of which some are frequent, some long, and many occur once or twice."""
    rng = random.Random(seed)
    return "".join(
        f" {rng.randrange(2 ** rng.randrange(1, 20)):x}{'é' * rng.choice([0, 0, 0, 1, 9, 30])}"
        for _ in range(num_words)
    )


def test_a_crowded_cache_is_replaced_by_a_larger_one_with_the_same_content(tokenizer: Tokenizer) -> None:
    text = words(1, 40_000)
    expected = tokenizer.encode_array(text)
    encoder = tokenizer._codec.fast_encoder
    before = encoder._cache.get()
    encoder._cache._current = larger = before.successor()
    assert larger.bits == before.bits + 1 and larger.state[NUM_KEYS] == before.state[NUM_KEYS] > 1000
    assert before.state[LOCK] == 1 and larger.state[LOCK] == 0
    assert np.array_equal(tokenizer.encode_array(text), expected)
    assert larger.state[NUM_KEYS] >= before.state[NUM_KEYS]


def test_a_closed_cache_is_read_but_not_changed(tokenizer: Tokenizer) -> None:
    expected = tokenizer.encode_array(words(1, 1000))
    shared = tokenizer._codec.fast_encoder._cache
    closed = shared.get()
    library.load().close_cache(closed.state)
    try:
        num_keys = closed.state[NUM_KEYS]
        assert np.array_equal(tokenizer.encode_array(words(1, 1000)), expected)
        tokenizer.encode_array(words(2, 1000))
        assert closed.state[NUM_KEYS] == num_keys
    finally:
        closed.state[LOCK] = 0


def test_the_largest_cache_is_replaced_by_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_LAST_BITS", 17)
    full = Cache()
    assert not full.is_crowded()
    full.state[NUM_KEYS] = full.state[MAX_KEYS]
    assert full.is_crowded() and full.successor().state[NUM_KEYS] == 0


def test_a_cache_is_replaced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = SharedCache()
    shared._current.state[NUM_KEYS] = shared._current.state[MAX_KEYS]
    crowded = shared._current
    with shared._lock:
        assert shared.get() is crowded, "another thread is about to replace it"
    larger = shared.get()
    assert larger.bits == crowded.bits + 1 and shared.get() is larger


@pytest.mark.parametrize("last_bits", [10, 19], ids=["cleared again and again", "growing"])
def test_many_threads_get_the_same_ids(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, frequent_switches: None, last_bits: int
) -> None:
    num_threads = 8
    monkeypatch.setattr(cache, "_FIRST_BITS", 6)
    monkeypatch.setattr(cache, "_LAST_BITS", last_bits)
    monkeypatch.setattr(Cache.__init__, "__defaults__", (6, None))
    texts = [words(number % 3, 300) for number in range(60)]
    fresh = Tokenizer(tokenizer.vocab, tokenizer.merges, tokenizer.special_tokens)
    expected = [list(fresh._codec.plain_encode([text], True)) for text in texts]
    for _ in range(3):
        shared = Tokenizer(tokenizer.vocab, tokenizer.merges, tokenizer.special_tokens)
        _ = shared._codec.fast_encoder  # built before the threads start
        barrier = Barrier(num_threads)

        def encode(number: int, shared: Tokenizer = shared, barrier: Barrier = barrier) -> list[list[int]]:
            order = texts[number:] + texts[:number]
            barrier.wait()
            return [shared.encode(text) for text in order]

        with ThreadPoolExecutor(num_threads) as threads:
            for number, results in enumerate(threads.map(encode, range(num_threads))):
                assert results == expected[number:] + expected[:number]
