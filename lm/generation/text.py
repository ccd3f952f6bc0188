"""Tokens to text, piece by piece: never half a character, never the beginning of a stop string."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Takes the bytes of tokens and gives the text that is certain by then.

    A stop string ends the text, and is no part of it; `stopped` tells that one came. Of several the one that is
    complete first counts, and of those the longest: the text does not depend on how it was cut into tokens.

    Example:
        >>> text = TextStream(stop=["END"])
        >>> text.feed(b"caf\\xc3"), text.feed(b"\\xa9 E"), text.feed(b"at EN"), text.feed(b"D."), text.stopped
        ('caf', 'é ', 'Eat ', '', True)
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = [text for text in stop if text]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # what may be the beginning of a stop string
        self.stopped = False

    def feed(self, data: bytes) -> str:
        return self._emit(self._decoder.decode(data))

    def finish(self) -> str:
        """What was held back; half a character becomes U+FFFD."""
        piece = self._emit(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return piece + held

    def _emit(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        kept = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest beginning of `stop`, though not the whole of it, that `text` ends in."""
    return next(length for length in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:length]))
