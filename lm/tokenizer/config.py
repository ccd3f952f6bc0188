"""The section `tokenizer` of params.yaml."""

from dataclasses import dataclass

import regex

from lm.corpus.config import END_OF_TEXT


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The parameters of BPE training.

    Attributes:
        vocab_size: The number of tokens: 256 bytes, the merges, and the special tokens.
        pattern: `gpt2`, `gpt4` or a regular expression.
        special_tokens: Texts that are always one token; must include the end-of-text token.
    """

    vocab_size: int
    pattern: str
    special_tokens: list[str]

    def __post_init__(self) -> None:
        smallest = 256 + len(self.special_tokens)
        if self.vocab_size < smallest:
            raise ValueError(
                f"vocab_size: expected at least {smallest} (256 bytes and {len(self.special_tokens)} special), "
                f"got {self.vocab_size}"
            )
        if END_OF_TEXT not in self.special_tokens:
            raise ValueError(f"special_tokens: expected {END_OF_TEXT!r} among them, got {self.special_tokens}")
        if len(set(self.special_tokens)) < len(self.special_tokens):
            raise ValueError(f"special_tokens: expected no duplicates, got {self.special_tokens}")
        for token in self.special_tokens:
            if len(token.encode()) < 2:  # a single byte is a token already
                raise ValueError(f"special_tokens: expected texts of two bytes or more, got {token!r}")
        if not self.pattern:
            raise ValueError("pattern: expected 'gpt2', 'gpt4' or a regular expression, got ''")
        try:
            regex.compile(self.pattern)
        except regex.error as error:
            raise ValueError(
                f"pattern: expected 'gpt2', 'gpt4' or a regular expression, got {self.pattern!r}: {error}"
            ) from None
