"""Mapping a function over items with several threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from threading import Lock, Semaphore, Thread
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_RESULTS_PER_THREAD = 3  # finished or not, that have not been requested yet


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """Yield the results in the order of the items, as `map` does, computed by `num_threads` threads.

    One of them is the calling thread: while the next result is not ready, it computes another one, so that no more
    threads run than requested. Each thread takes its items from the iterable itself, one thread at a time, and only a
    few more of them than results have been requested.
    """
    if num_threads == 1:
        yield from map(function, items)
        return
    work = _Work(function, items, _RESULTS_PER_THREAD * num_threads)
    threads = [Thread(target=work.run, daemon=True) for _ in range(num_threads - 1)]
    for thread in threads:
        thread.start()
    try:
        yield from work.results()
    finally:
        work.stop(len(threads))
        for thread in threads:
            thread.join()


class _Work(Generic[Item, Result]):
    """Items that several threads take in turn, and their results in order.

    Args:
        function: Computes the result of an item.
        items: The items.
        max_results: How many results there may be that have not been requested.
    """

    def __init__(self, function: Callable[[Item], Result], items: Iterable[Item], max_results: int) -> None:
        self._function = function
        self._items = iter(items)
        self._lock = Lock()
        self._space = Semaphore(max_results)
        self._results: deque[Future[Result]] = deque()
        self._is_over = False

    def run(self) -> None:
        """Compute results until there are no more items."""
        while self._space.acquire() and self._compute_next():
            pass

    def results(self) -> Iterator[Result]:
        """Yield all results in order; compute others until the next one is ready."""
        while True:
            is_ready = self._results and self._results[0].done()
            if not is_ready and self._space.acquire(blocking=False) and self._compute_next():
                continue
            # There are no more items, or no space, so the next result is ready or another thread computes it.
            if not self._results:
                return
            result = self._results.popleft().result()
            self._space.release()
            yield result

    def stop(self, num_threads: int) -> None:
        """Let the threads end after the items that they work on."""
        self._is_over = True
        self._space.release(num_threads)

    def _compute_next(self) -> bool:
        """Compute the result of the next item; return whether there was one."""
        result: Future[Result] = Future()
        with self._lock:
            if self._is_over:
                return False
            try:
                item = next(self._items)
            except StopIteration:
                self._is_over = True
                return False
            except BaseException as error:
                self._is_over = True
                result.set_exception(error)
                self._results.append(result)
                return True
            self._results.append(result)
        try:
            result.set_result(self._function(item))
        except BaseException as error:
            result.set_exception(error)
            if isinstance(error, KeyboardInterrupt):  # only in the calling thread; the results before it do not matter
                raise
        return True
