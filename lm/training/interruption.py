"""Ctrl-C as a request to stop, so that the current training step can finish first."""

import signal
import threading
from types import FrameType, TracebackType


class Interruption:
    """Inside `with Interruption() as interruption`, Ctrl-C only sets `interruption.requested`.

    Python handles signals only in the main thread; in other threads, `requested` stays False.
    """

    requested = False

    def __enter__(self) -> "Interruption":
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:
            self._previous_handler = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._in_main_thread:
            signal.signal(signal.SIGINT, self._previous_handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True  # no print here: Python raises if it interrupts another print
