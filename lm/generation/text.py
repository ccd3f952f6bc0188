"""Turn a stream of tokens into text: never half a character, never the beginning of a stop string."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """A prompt with its continuation; `ended` is false if the text was cut off, for example at `max_new_tokens`."""

    prompt: str
    seed: int
    text: str
    ended: bool


class TextStream:
    """Takes the bytes of tokens, one piece at a time, and returns the text that is certain so far.

    A stop string ends the text and is not part of it; `stopped` tells whether one was found. If there are several stop
    strings, the one that is complete first counts, and the longest of those that are complete at the same character.
    So the text does not depend on how it is divided into tokens.

    Example:
        >>> text = TextStream(stop=["END"])
        >>> text.feed(b"caf\\xc3"), text.feed(b"\\xa9 E"), text.feed(b"at EN"), text.feed(b"D."), text.stopped
        ('caf', 'é ', 'Eat ', '', True)
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = [text for text in stop if text]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False

    def feed(self, data: bytes) -> str:
        """Add bytes and return the new text that is certain, which may be empty."""
        return self._emit(self._decoder.decode(data))

    def finish(self) -> str:
        """Return the text that was held back; an incomplete character becomes U+FFFD."""
        piece = self._emit(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return piece + held

    def _emit(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        matches = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if matches:
            self.stopped, self._held = True, ""
            _, start = min(matches)  # the first to end, and of those the first to start, which is the longest
            return text[:start]
        num_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest proper prefix of `stop` that is a suffix of `text`."""
    return next(length for length in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:length]))
