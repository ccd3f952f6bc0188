"""A thread that owns the model and generates the texts of all requests in one batch.

    with Engine(model, num_rows=8, max_waiting=32) as engine:
        with engine.submit([request]) as stream:
            index, token = stream.get(timeout=1.0)  # repeat until a token has `finish`

A text joins the batch at the first step with a free row, whatever else is running. It frees its row when it finishes,
or when its reader leaves the `with` block.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from lm.generation.batch import Batch, Request, Token
from lm.generation.numba_decoder import fastest_decoder
from lm.model.transformer import TransformerLM


class Busy(Exception):
    """All rows and all places in the queue are taken; try again later."""


class Stopped(Exception):
    """The engine has stopped, and no text will be continued."""


@dataclass(eq=False)  # compared by identity: two jobs may have equal requests
class _Job:
    """A text to generate: its request, the stream for its tokens, and its index there."""

    request: Request
    stream: "TokenStream"
    index: int
    is_canceled: bool = False


class Engine:
    """Generates up to `num_rows` texts at a time, while up to `max_waiting` others wait. Runs until `close`.

    As in `Batch`, a text depends only on its request. Requests must be valid for `Batch.add`.

    Args:
        context_length: the number of tokens that a text can have, at most and by default that of the model.

    Raises:
        UserError: the key/value cache does not fit into the memory that is free.
    """

    def __init__(
        self, model: TransformerLM, num_rows: int, max_waiting: int, context_length: int | None = None
    ) -> None:
        decoder = fastest_decoder(model, num_rows, context_length)
        self.context_length = decoder.context_length
        self._batch = Batch(decoder)
        self._capacity = num_rows + max_waiting
        # Threads may access what follows only while they hold this condition.
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._running: dict[int, _Job] = {}  # by row
        self._is_closing = False
        self._has_stopped = False
        # Not a daemon: the interpreter would abort if it ended while the thread computes.
        self._thread = threading.Thread(target=self._run, name="engine")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_running(self) -> bool:
        """Whether the engine accepts requests: it has not been stopped, and the model has not failed."""
        return not (self._is_closing or self._has_stopped)

    def stop(self) -> None:
        """Stop after the current step, without waiting for it. All readers then get `Stopped`."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()

    def close(self) -> None:
        """Stop, and wait for the end of the current step."""
        self.stop()
        self._thread.join()

    def submit(
        self, requests: Sequence[Request], on_tokens: Callable[[bool], object] = lambda _: None
    ) -> "TokenStream":
        """Queue the texts of one reader: either all of them, or none.

        The engine's thread calls `on_tokens` when there is something to `get`, at most once per step, and never after
        the reader has left the `with` block. The argument tells whether one of the texts has ended.

        Raises:
            Busy: there is no room for all of them.
            Stopped: the engine has stopped.
        """
        stream = TokenStream(self, requests, on_tokens)
        with self._changed:
            if self._has_stopped:
                raise Stopped
            if len(self._running) + len(self._waiting) + len(stream.jobs) > self._capacity:
                raise Busy
            self._waiting.extend(stream.jobs)
            self._changed.notify()
        return stream

    def cancel(self, jobs: Sequence[_Job]) -> None:
        """Stop generating these texts, some of which may have finished. Their rows are free before the next step."""
        with self._changed:
            for job in jobs:
                job.is_canceled = True
                if job in self._waiting:
                    self._waiting.remove(job)

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                tokens = self._batch.step()
                with self._changed:
                    jobs = {row: self._running.pop(row) if tokens[row].finish else self._running[row] for row in tokens}
                    _deliver([(job, (job.index, tokens[row])) for row, job in jobs.items()])
        finally:  # also if the model fails: the readers must not wait forever
            with self._changed:
                self._has_stopped = True
                _deliver([(job, None) for job in [*self._running.values(), *self._waiting]])

    def _wait_for_work(self) -> bool:
        """Remove canceled texts from the batch and add waiting ones; block until there are any.

        Returns:
            Whether there is a step to do; False means that the engine is closing.
        """
        with self._changed:
            while not self._is_closing:
                for row in [row for row, job in self._running.items() if job.is_canceled]:
                    self._batch.remove(row)
                    del self._running[row]
                while self._waiting and self._batch.num_free:
                    job = self._waiting.popleft()
                    self._running[self._batch.add(job.request)] = job
                if self._running:
                    return True
                self._changed.wait()
            return False


def _deliver(items: "list[tuple[_Job, tuple[int, Token] | None]]") -> None:
    """Put items into the streams of their jobs, and notify each reader once."""
    has_ended: dict[TokenStream, bool] = {}
    for job, item in items:
        if not job.is_canceled:
            job.stream.items.put(item)
            has_ended[job.stream] = has_ended.get(job.stream, False) or item is None or item[1].finish is not None
    for stream, ended in has_ended.items():
        stream.on_tokens(ended)


class TokenStream:
    """The tokens of texts that were submitted together, as they are generated.

    Leaving the `with` block cancels the texts that have not finished. None among the items means that the engine has
    stopped.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request], on_tokens: Callable[[bool], object]) -> None:
        self._engine = engine
        self.items: SimpleQueue[tuple[int, Token] | None] = SimpleQueue()
        self.on_tokens = on_tokens
        self.jobs = [_Job(request, self, index) for index, request in enumerate(requests)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._engine.cancel(self.jobs)

    def get(self, timeout: float) -> tuple[int, Token]:
        """Return the index of a request among those submitted, and the next token of its text.

        Raises:
            TimeoutError: there was no token within `timeout` seconds.
            Stopped: the engine has stopped.
        """
        try:
            item = self.items.get(timeout=timeout)
        except Empty as error:
            raise TimeoutError from error
        if item is None:
            raise Stopped
        return item

    def arrived(self) -> Iterator[tuple[int, Token]]:
        """Yield what `get` would return without waiting."""
        with suppress(TimeoutError):
            while True:
                yield self.get(timeout=0)

    def cancel(self, index: int) -> None:
        """Stop generating one text. `get` may still return some of its tokens."""
        self._engine.cancel([self.jobs[index]])
