import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from lm.tokenizer.text.fast.parallel import parallel_map


@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
def test_results_are_in_the_order_of_the_items(num_threads: int) -> None:
    def slow_at_first(number: int) -> int:
        time.sleep(0.001 * (5 - number % 5))
        return number * number

    assert list(parallel_map(slow_at_first, range(40), num_threads)) == [number * number for number in range(40)]
    assert list(parallel_map(slow_at_first, [], num_threads)) == []


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_items_are_taken_only_a_little_ahead(num_threads: int) -> None:
    items = itertools.count()
    results = parallel_map(lambda number: number, items, num_threads)
    assert next(items) == 0, "no item should be taken before the first result is requested"
    assert list(itertools.islice(results, 50)) == list(range(1, 51))
    assert next(items) < 51 + 3 * num_threads
    results.close()


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_an_error_is_raised_in_order_and_the_threads_end(num_threads: int) -> None:
    before = threading.active_count()
    results = parallel_map(lambda number: 1 // number, [1, 1, 1, 0, 1, 1, 0] + [1] * 90, num_threads)
    assert [next(results) for _ in range(3)] == [1, 1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == before


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_an_error_of_the_iterable_comes_after_the_results_before_it(num_threads: int) -> None:
    def items() -> Iterator[int]:
        yield from range(20)
        raise ValueError("no more")

    results = parallel_map(lambda number: number, items(), num_threads)
    assert [next(results) for _ in range(20)] == list(range(20))
    with pytest.raises(ValueError, match="no more"):
        next(results)


@pytest.mark.parametrize("num_threads", [2, 3])
def test_the_calling_thread_computes_too(num_threads: int) -> None:
    barrier = threading.Barrier(num_threads, timeout=60)

    def compute(number: int) -> int:
        barrier.wait()  # until as many threads as requested are here
        return threading.get_ident()

    identities = set(parallel_map(compute, range(6 * num_threads), num_threads))
    assert len(identities) == num_threads and threading.get_ident() in identities
