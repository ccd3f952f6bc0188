r"""Pre-tokenization: split text at special tokens, then with a regular expression. BPE never merges across a split.

    >>> pre_tokenizer = PreTokenizer("gpt2", ["<|endoftext|>"])
    >>> list(pre_tokenizer.stream(["The end.<|endoftext|>I", "'m"]))
    [(['The', ' end', '.'], '<|endoftext|>'), (['I', "'m"], '')]

It works on a stream of chunks: however the text is divided into chunks, the pre-tokens are the same. What a letter or a
number is does not depend on the installed version of `regex`, but on the Unicode version in `categories`.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np

from lm.errors import UserError, quote
from lm.tokenizer.text.automaton import compile_automaton, find_obstacle
from lm.tokenizer.text.categories import findall, with_stand_ins
from lm.tokenizer.text.patterns import PATTERNS, compile_pattern

# So many characters are collected before the first place is looked for where the text can be split. Most prompts are
# shorter, so they do not have to wait for their pattern to be compiled.
_MIN_LENGTH_TO_SPLIT = 1 << 9

# A text of this length takes noticeable time with a pattern that cannot be compiled.
_LONG = 1 << 20

# Long chunks are processed in slices of this many characters, so that memory does not depend on the size of the chunks.
_SLICE_LENGTH = 1 << 14

END_OF_INPUT = ""


class PreTokenizer:
    """Splits text with a pattern, after splitting it at special tokens.

    The named patterns match every character. If a custom pattern leaves text between its matches, that text becomes
    pre-tokens too, so no text is ever lost.

    Args:
        pattern: A name in `PATTERNS`, such as `gpt2`, or a regular expression of the `regex` module.
        special_tokens: Texts that are never split or merged.

    Raises:
        UserError: The pattern is not a valid regular expression, or a special token is empty or contains half of a
            surrogate pair.
    """

    def __init__(self, pattern: str = "gpt2", special_tokens: Sequence[str] = ()) -> None:
        self.pattern = PATTERNS.get(pattern, pattern)
        self._is_named = self.pattern in PATTERNS.values()
        try:
            self._regex = compile_pattern(pattern)
        except ValueError as error:
            raise UserError(f"tokenizer.{error}") from error
        for token in special_tokens:
            if not token or token != token.encode(errors="ignore").decode():  # half of a surrogate pair
                raise UserError(f"tokenizer.special_tokens: expected non-empty texts, got {quote(token)}")
        # An alternation takes the first alternative that matches, so the longest comes first.
        longest_first = sorted(special_tokens, key=len, reverse=True)
        matches_nothing = r"(?!)"
        self._special_regex = re.compile("|".join(map(re.escape, longest_first)) or matches_nothing)
        self._longest_special = max(map(len, special_tokens), default=1)

    def stream(self, chunks: Iterable[str]) -> Iterator[tuple[list[str], str | None]]:
        """Yield the pre-tokens in order, in lists, each list together with what follows it.

        A list is followed by a special token, by END_OF_INPUT, or by None if the document continues.

        If the pattern can be compiled, memory holds one slice of the text and the longest pre-token. Another pattern
        may look ahead or behind any distance, so it gets a whole document at once, and memory holds the longest text
        between two special tokens.
        """
        buffer = ""
        searched_length = _MIN_LENGTH_TO_SPLIT
        total_length = 0
        for text, follower in self._split_at_special(chunks):
            buffer += text
            total_length += len(text)
            if follower is not None:
                yield self._split(buffer), follower
                buffer = ""
                searched_length = _MIN_LENGTH_TO_SPLIT
            elif len(buffer) >= searched_length:
                split = self._last_split(buffer, total_length)
                # Search again only when the buffer has doubled, so that one endless pre-token takes linear time.
                searched_length = max(_MIN_LENGTH_TO_SPLIT, 2 * (len(buffer) - split))
                if split:
                    yield self._split(buffer[:split]), None
                    buffer = buffer[split:]

    def _last_split(self, text: str, total_length: int) -> int:
        """Return the last position where a text can be split, whatever follows; 0 if there is none."""
        if obstacle := find_obstacle(self.pattern):
            if total_length >= _LONG:
                _report_slow(self.pattern, obstacle)
            return 0
        automaton = compile_automaton(self.pattern)
        classes = automaton.classes[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")]
        positions = np.flatnonzero(automaton.splits[classes[:-1], classes[1:]])
        return int(positions[-1]) + 1 if len(positions) else 0

    def _split_at_special(self, chunks: Iterable[str]) -> Iterator[tuple[str, str | None]]:
        """Yield text with its follower as in `stream`; the leftmost special token wins, then the longest."""
        buffer = ""
        for chunk in chunks:
            for begin in range(0, len(chunk), _SLICE_LENGTH):
                buffer += chunk[begin : begin + _SLICE_LENGTH]
                # A special token that starts before `settled` is in the buffer completely.
                settled = max(0, len(buffer) - self._longest_special + 1)
                start = 0
                for match in self._special_regex.finditer(buffer):
                    if match.start() >= settled:
                        break
                    yield buffer[start : match.start()], match.group()
                    start = match.end()
                settled = max(start, settled)
                yield buffer[start:settled], None
                buffer = buffer[settled:]
        start = 0
        for match in self._special_regex.finditer(buffer):
            yield buffer[start : match.start()], match.group()
            start = match.end()
        yield buffer[start:], END_OF_INPUT

    def _split(self, text: str) -> list[str]:
        if self._is_named:
            return findall(self._regex, text)
        pre_tokens = []
        end = 0
        # Sorted, since a pattern with the flag (?r) matches from right to left.
        for start, stop in sorted(match.span() for match in self._regex.finditer(with_stand_ins(text))):
            pre_tokens += [text[end:start], text[start:stop]]
            end = stop
        pre_tokens.append(text[end:])
        return [pre_token for pre_token in pre_tokens if pre_token]


@cache
def _report_slow(pattern: str, obstacle: str) -> None:
    """Say once that a pattern takes plain Python."""
    print(
        f"tokenizer.pattern: {quote(pattern)} is slow, since it cannot be compiled because of {obstacle}",
        file=sys.stderr,
    )
