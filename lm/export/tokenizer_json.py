"""Write `tokenizer.json`, the format of Hugging Face's library tokenizers, which `Tokenizer.from_hugging_face` reads.

The file contains the same pre-tokenization pattern, and its BPE works on bytes written in GPT-2's alphabet, so the ids
are the same as ours. What a letter is depends on the version of Unicode that the reading library knows; in tokenizers
0.23 it is the same as ours.

In the vocabulary, special tokens are plain text, and all other tokens are written in the alphabet.
"""

from typing import Any

from lm.errors import UserError, quote
from lm.tokenizer.encoding.hugging_face import ONIGURUMA, is_portable
from lm.tokenizer.text.byte_alphabet import from_text, to_text
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.tokenizer import Tokenizer

_SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
}


def pattern_name(tokenizer: Tokenizer) -> str | None:
    """Return the name of the pattern, whether the tokenizer has it by its name or in full; None if it has no name."""
    names = (name for name, pattern in PATTERNS.items() if tokenizer.pattern in (name, pattern))
    return next(names, None)


def token_texts(tokenizer: Tokenizer) -> list[str]:
    """Return the tokens in the order of their ids: special tokens as plain text, the others in GPT-2's alphabet.

    Raises:
        UserError: a special token is ambiguous: it is also an ordinary token, or its text spells other bytes in the
            alphabet.
    """
    special = {text.encode(): text for text in tokenizer.special_tokens}
    made = {bytes([byte]) for byte in range(256)} | {left + right for left, right in tokenizer.merges}
    for data, text in special.items():
        try:
            is_ambiguous = from_text(text) != data
        except KeyError:  # it contains other characters than the alphabet
            is_ambiguous = data in made
        if is_ambiguous:
            raise UserError(
                f"tokenizer.special_tokens: {quote(text)} cannot be exported, since it is also an ordinary token or "
                "spells other bytes in GPT-2's alphabet; use printable ASCII characters, such as '<|name|>'"
            )
    tokens = (tokenizer.vocab[token_id] for token_id in range(tokenizer.vocab_size))
    return [special.get(token) or to_text(token) for token in tokens]


def merge_texts(tokenizer: Tokenizer) -> list[str]:
    """Return the merges as in `merges.txt`: two tokens in GPT-2's alphabet, separated by a space."""
    return [f"{to_text(left)} {to_text(right)}" for left, right in tokenizer.merges]


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of `tokenizer.json`.

    Raises:
        UserError: the format cannot represent the tokenizer.
    """
    pattern = _expression(tokenizer)
    texts = token_texts(tokenizer)
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token_id, "content": text, **_SPECIAL}
            for token_id, text in enumerate(texts)
            if text in tokenizer.special_tokens
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL]},
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {
            **_BPE,
            "ignore_merges": tokenizer.ignore_merges,
            "vocab": {text: token_id for token_id, text in enumerate(texts)},
            "merges": merge_texts(tokenizer),
        },
    }


def _expression(tokenizer: Tokenizer) -> str:
    """Return the pattern as a regular expression for the library."""
    if name := pattern_name(tokenizer):
        return ONIGURUMA[name]
    if is_portable(tokenizer.pattern):
        return tokenizer.pattern
    raise UserError(
        f"tokenizer.pattern: expected {', '.join(PATTERNS)} or a pattern that can be compiled, got "
        f"{quote(tokenizer.pattern)}, which other programs may interpret differently; train a tokenizer with one of "
        "the expected patterns"
    )
