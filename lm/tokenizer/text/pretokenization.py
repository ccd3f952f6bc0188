r"""Pre-tokenisation: text is cut at special tokens, then by a regular expression; BPE never merges across a cut.

    >>> pre_tokenizer = PreTokenizer("gpt2", ["<|endoftext|>"])
    >>> list(pre_tokenizer.stream(["The end.<|endoftext|>I", "'m"]))
    [(['The', ' end', '.'], '<|endoftext|>'), (['I', "'m"], '')]

It is streamed: however the text is divided into chunks, the pre-tokens are those of the whole text.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

import regex

from lm.errors import UserError

PATTERNS = {
    # As released with GPT-2 (encoder.py).
    "gpt2": r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
    # cl100k_base of tiktoken.
    "gpt4": (
        r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
        r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
    ),
}

# A pre-token of a named pattern is settled once this many characters after it are known: `'` needs both letters
# of `'ll`, and a run of white space, all but its last character, the one that follows.
_LOOKAHEAD = 2

# Long chunks are taken in slices, so that memory does not depend on how the caller divides the text.
_SLICE = 1 << 14

END_OF_INPUT = ""


class PreTokenizer:
    """A pattern (`gpt2`, `gpt4` or a regular expression of the module `regex`) and the special tokens.

    The named patterns match every character. Text that a custom pattern leaves between its matches becomes
    pre-tokens of its own, so no text is ever lost.

    Raises:
        UserError: the pattern is no regular expression, or a special token is empty.
    """

    def __init__(self, pattern: str = "gpt2", special_tokens: Sequence[str] = ()) -> None:
        self.pattern = PATTERNS.get(pattern, pattern)
        self._named = self.pattern in PATTERNS.values()
        try:
            self._regex = regex.compile(self.pattern)
        except regex.error as error:
            raise UserError(
                f"tokenizer.pattern: expected 'gpt2', 'gpt4' or a regular expression, got {pattern!r}: "
                f"{error.msg} at position {error.pos}"
            ) from error
        if "" in special_tokens:
            raise UserError("tokenizer.special_tokens: expected non-empty texts, got ''")
        # The longest first: an alternation takes the first that matches. Without special tokens nothing matches.
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._special_regex = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._longest_special = max(map(len, special_tokens), default=1)

    def stream(self, chunks: Iterable[str]) -> Iterator[tuple[list[str], str | None]]:
        """Yield the pre-tokens in order, a list at a time, each list with what follows it.

        That is the special token that ends the document, END_OF_INPUT, or None when the document goes on.

        With a named pattern, memory holds a slice of the text and the longest pre-token. A custom pattern may look
        at any distance, so it gets a document as a whole: memory holds the longest text between special tokens.
        """
        buffer = ""
        settled_length = 0
        for text, follower in self._split_at_special(chunks):
            buffer += text
            if follower is not None:
                yield self._split(buffer), follower
                buffer = ""
                settled_length = 0
            elif self._named and len(buffer) > settled_length:
                pre_tokens = self._split(buffer)
                buffer = ""
                while pre_tokens and len(buffer) < _LOOKAHEAD:
                    buffer = pre_tokens.pop() + buffer
                # Twice as long before it is split again: a pre-token that grows without end costs linear time.
                settled_length = 2 * len(buffer)
                yield pre_tokens, None

    def _split_at_special(self, chunks: Iterable[str]) -> Iterator[tuple[str, str | None]]:
        """Yield text with its follower as in `stream`; the leftmost special token wins, then the longest."""
        buffer = ""
        for chunk in chunks:
            for begin in range(0, len(chunk), _SLICE):
                buffer += chunk[begin : begin + _SLICE]
                # Any special token that starts before here would be seen whole.
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
        if self._named:
            return self._regex.findall(text)
        pre_tokens = []
        end = 0
        # Sorted, since a pattern with the flag (?r) matches from right to left.
        for start, stop in sorted(match.span() for match in self._regex.finditer(text)):
            pre_tokens += [text[end:start], text[start:stop]]
            end = stop
        pre_tokens.append(text[end:])
        return [pre_token for pre_token in pre_tokens if pre_token]
