"""The section `tokenizer` of params.yaml."""

import difflib
from dataclasses import dataclass

import regex

from lm.corpus.config import END_OF_TEXT, MAX_LIMIT
from lm.errors import quote
from lm.tokenizer.text.patterns import EXPECTED, PATTERNS, compile_pattern

# The largest vocabularies in use have about 260,000 tokens, and some models thousands of special tokens.
_MAX_VOCAB_SIZE = 1 << 21
_MAX_SPECIAL_TOKENS = 10_000
_MAX_SPECIAL_BYTES = 1_000

_SAMPLE = "".join(map(chr, range(128))) + "It's 12.5 in the café, 語彙!\r\n\n  'LL\t"


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The parameters of BPE training.

    Attributes:
        vocab_size: The number of tokens: 256 bytes, the merges, and the special tokens.
        pattern: A name in `PATTERNS`, such as `gpt2`, or a regular expression that never matches the empty text.
        special_tokens: Texts that are always one token; must include the end-of-text token.
        train_bytes: The bytes of text to learn from: the first files of the train split that have as many together.
            0 means the whole split.

    Raises:
        ValueError: A value cannot be used; the message starts with its name.
    """

    vocab_size: int
    pattern: str
    special_tokens: list[str]
    train_bytes: int

    def __post_init__(self) -> None:
        if not 0 <= self.train_bytes <= MAX_LIMIT:
            raise ValueError(f"train_bytes: expected 0 to {MAX_LIMIT}, got {quote(self.train_bytes)}")
        _check_special_tokens(self.special_tokens)
        smallest = 256 + len(self.special_tokens)
        if self.vocab_size < smallest:
            raise ValueError(
                f"vocab_size: expected at least {smallest} (256 bytes and {len(self.special_tokens)} special), "
                f"got {quote(self.vocab_size)}"
            )
        if self.vocab_size > _MAX_VOCAB_SIZE:
            raise ValueError(f"vocab_size: expected at most {_MAX_VOCAB_SIZE}, got {quote(self.vocab_size)}")
        if self.pattern not in PATTERNS:
            _check_expression(self.pattern)


def _check_special_tokens(tokens: list[str]) -> None:
    if len(tokens) > _MAX_SPECIAL_TOKENS:
        raise ValueError(f"special_tokens: expected at most {_MAX_SPECIAL_TOKENS}, got {len(tokens)}")
    if END_OF_TEXT not in tokens:
        raise ValueError(f"special_tokens: expected {END_OF_TEXT!r} among them, got {quote(tokens)}")
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"special_tokens: expected no duplicates, got {quote(tokens)}")
    for index, token in enumerate(tokens):
        size = len(token.encode())
        if size < 2:  # a single byte is a token already
            raise ValueError(f"special_tokens: expected texts of two bytes or more, got {quote(token)}")
        if size > _MAX_SPECIAL_BYTES:
            raise ValueError(f"special_tokens[{index}]: expected at most {_MAX_SPECIAL_BYTES} bytes, got {size}")
        if token != END_OF_TEXT and _hides_end_of_text(token):
            raise ValueError(
                f"special_tokens[{index}]: expected no overlap with {END_OF_TEXT!r}, got {quote(token)}, which would "
                "hide the ends of documents"
            )


def _hides_end_of_text(token: str) -> bool:
    """Return whether `token` contains the end-of-text token or begins earlier and overlaps it; the earlier one wins."""
    return END_OF_TEXT in token or any(END_OF_TEXT.startswith(token[begin:]) for begin in range(1, len(token)))


def _check_expression(pattern: str) -> None:
    """Refuse a regular expression that cannot be meant, such as a misspelled name."""
    compiled = compile_pattern(pattern)
    if regex.fullmatch(r"[\w -]*\w[\w -]*", pattern):
        close = difflib.get_close_matches(pattern.lower(), PATTERNS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"pattern: expected {EXPECTED}, got {quote(pattern)}, which matches only this text{hint}")
    try:
        is_empty = any(not match.group() for text in ("", _SAMPLE) for match in compiled.finditer(text, timeout=1))
    except (MemoryError, TimeoutError):
        raise ValueError(
            f"pattern: expected a regular expression that matches in reasonable time and memory, got {quote(pattern)}"
        ) from None
    if is_empty:
        raise ValueError(
            f"pattern: expected a regular expression that always matches at least one character, got {quote(pattern)}, "
            "which also matches the empty text"
        )
