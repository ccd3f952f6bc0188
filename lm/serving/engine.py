"""One thread that owns the model: texts from anywhere grow together in one batch, each read where it was asked for.

    with Engine(model, num_rows=8, max_waiting=32) as engine:
        with engine.submit([request]) as answer:
            index, token = answer.get(timeout=1.0)  # again and again, until a token has `finish`

A text joins the batch at the first step that finds a free row, whatever runs beside it, and makes room when it is
finished or when nobody reads it any more.
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
    """No row is free, and as many requests wait as may; try again later."""


class Stopped(Exception):
    """The engine has ended, and with it every text."""


@dataclass(eq=False)  # two jobs are never the same, even with the same request
class _Job:
    """A text: the request, its number in the answer, and where its tokens go; None says that the engine has ended."""

    request: Request
    index: int
    tokens: "SimpleQueue[tuple[int, Token] | None]"
    is_dropped: bool = False


class Engine:
    """Works from the moment it is made until `close`; at most `num_rows` texts grow while `max_waiting` others wait.

    A text depends on its request only, as in `Batch`. The requests must be such that `Batch.add` takes them.
    """

    def __init__(self, model: TransformerLM, num_rows: int, max_waiting: int) -> None:
        self.context_length = model.config.context_length
        self._batch = Batch(fastest_decoder(model, num_rows))
        self._capacity = num_rows + max_waiting
        # What follows is shared by all threads and touched only by the one that holds the condition.
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._running: dict[int, _Job] = {}  # by row
        self._is_closing = False
        self._has_ended = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End after the step under way; all answers are then `Stopped`."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def submit(self, requests: Sequence[Request]) -> "Answer":
        """Queue some texts that are read together; all of them or none.

        Raises:
            Busy: there is not room for so many.
            Stopped: the engine has ended.
        """
        answer = Answer(self, requests)
        with self._changed:
            if self._has_ended:
                raise Stopped
            if len(self._running) + len(self._waiting) + len(answer.jobs) > self._capacity:
                raise Busy
            self._waiting.extend(answer.jobs)
            self._changed.notify()
        return answer

    def drop(self, jobs: Sequence[_Job]) -> None:
        """End texts that may have ended already; rows are free again before the next step."""
        with self._changed:
            for job in jobs:
                job.is_dropped = True
                if job in self._waiting:
                    self._waiting.remove(job)

    def _work(self) -> None:
        try:
            while self._prepare():
                tokens = self._batch.step()
                with self._changed:
                    for row, token in tokens.items():
                        job = self._running.pop(row) if token.finish else self._running[row]
                        job.tokens.put((job.index, token))
        finally:  # also when the model fails: those who wait must hear of it
            with self._changed:
                self._has_ended = True
                for job in [*self._running.values(), *self._waiting]:
                    job.tokens.put(None)

    def _prepare(self) -> bool:
        """Take dropped texts out of the batch and waiting ones in, and wait until there are any; False: to end."""
        with self._changed:
            while not self._is_closing:
                for row in [row for row, job in self._running.items() if job.is_dropped]:
                    self._batch.remove(row)
                    del self._running[row]
                while self._waiting and self._batch.num_free:
                    job = self._waiting.popleft()
                    self._running[self._batch.add(job.request)] = job
                if self._running:
                    return True
                self._changed.wait()
            return False


class Answer:
    """The tokens of texts asked for together, as they come; leaving the `with` block ends those that still grow."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self._engine = engine
        self._tokens: SimpleQueue[tuple[int, Token] | None] = SimpleQueue()
        self.jobs = [_Job(request, index, self._tokens) for index, request in enumerate(requests)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._engine.drop(self.jobs)

    def get(self, timeout: float) -> tuple[int, Token]:
        """The number of a request among those submitted, and the next token of its text.

        Raises:
            TimeoutError: none came within `timeout` seconds.
            Stopped: the engine has ended.
        """
        try:
            item = self._tokens.get(timeout=timeout)
        except Empty as error:
            raise TimeoutError from error
        if item is None:
            raise Stopped
        return item

    def end(self, index: int) -> None:
        """End one text before its time; tokens of it may still come."""
        self._engine.drop([self.jobs[index]])
