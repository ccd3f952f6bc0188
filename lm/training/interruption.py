"""Ctrl-C as a request: what is under way comes to its end first."""

import signal
import threading
from types import FrameType, TracebackType


class Interruption:
    """`with Interruption() as interruption`: inside, Ctrl-C only sets `interruption.requested`.

    Outside of the main thread, where Python lets nobody listen to signals, it is never set.
    """

    requested = False

    def __enter__(self) -> "Interruption":
        self._listens = threading.current_thread() is threading.main_thread()
        if self._listens:
            self._before = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._listens:
            signal.signal(signal.SIGINT, self._before)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True  # and no print: it could come in the midst of another one, which Python refuses
