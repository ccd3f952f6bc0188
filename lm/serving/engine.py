"""A thread that owns the model and generates the texts of all requests in one batch.

    with Engine(model, num_rows=8, max_waiting=32) as engine:
        with engine.submit([request]) as stream:
            index, token = stream.get(timeout=1.0)  # repeat until a token has `finish`

A text joins the batch at the first step with a free row, whatever else is running. It frees its row when it finishes,
or when its reader leaves the `with` block.
"""

import threading
from collections import deque
from collections.abc import Sequence
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
    """A text to generate: its request, its index in the stream, and the queue for its tokens.

    None in the queue means that the engine has stopped.
    """

    request: Request
    index: int
    tokens: "SimpleQueue[tuple[int, Token] | None]"
    is_canceled: bool = False


class Engine:
    """Generates up to `num_rows` texts at a time, while up to `max_waiting` others wait. Runs until `close`.

    As in `Batch`, a text depends only on its request. Requests must be valid for `Batch.add`.
    """

    def __init__(self, model: TransformerLM, num_rows: int, max_waiting: int) -> None:
        self.context_length = model.config.context_length
        self._batch = Batch(fastest_decoder(model, num_rows))
        self._capacity = num_rows + max_waiting
        # Threads may access what follows only while they hold this condition.
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._running: dict[int, _Job] = {}  # by row
        self._is_closing = False
        self._has_stopped = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop after the current step. All readers then get `Stopped`."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def submit(self, requests: Sequence[Request]) -> "TokenStream":
        """Queue the texts of one reader: either all of them, or none.

        Raises:
            Busy: there is no room for all of them.
            Stopped: the engine has stopped.
        """
        stream = TokenStream(self, requests)
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
                    for row, token in tokens.items():
                        job = self._running.pop(row) if token.finish else self._running[row]
                        job.tokens.put((job.index, token))
        finally:  # also if the model fails: the readers must not wait forever
            with self._changed:
                self._has_stopped = True
                for job in [*self._running.values(), *self._waiting]:
                    job.tokens.put(None)

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


class TokenStream:
    """The tokens of texts that were submitted together, as they are generated.

    Leaving the `with` block cancels the texts that have not finished.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self._engine = engine
        self._tokens: SimpleQueue[tuple[int, Token] | None] = SimpleQueue()
        self.jobs = [_Job(request, index, self._tokens) for index, request in enumerate(requests)]

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
            item = self._tokens.get(timeout=timeout)
        except Empty as error:
            raise TimeoutError from error
        if item is None:
            raise Stopped
        return item

    def cancel(self, index: int) -> None:
        """Stop generating one text. `get` may still return some of its tokens."""
        self._engine.cancel([self.jobs[index]])
