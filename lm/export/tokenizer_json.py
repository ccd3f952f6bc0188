"""Write and read `tokenizer.json`, the format of Hugging Face's library tokenizers.

The file contains the same pre-tokenization pattern, and its BPE works on bytes written in GPT-2's alphabet, so the ids
are the same as ours. The only exceptions are characters that were added to Unicode after the version that the reading
library knows: its pattern may not treat them as letters.

In the vocabulary, special tokens are plain text, and all other tokens are written in the alphabet.
"""

import json
from pathlib import Path
from typing import Any

from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError
from lm.tokenizer.text.byte_alphabet import from_text, to_text
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.tokenizer import Tokenizer

# The library uses Oniguruma with Ruby's syntax, where `{1,3}+` means a repeated repetition and not a possessive one.
# Without the plus, the pattern matches the same text: nothing follows that would cause backtracking.
_ONIGURUMA = {name: pattern.replace("{1,3}+", "{1,3}") for name, pattern in PATTERNS.items()}

_SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
_CONTEXT_FLAGS = ("single_word", "lstrip", "rstrip")  # make a token depend on, or absorb, the text next to it
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
# The settings that change the ids. The others matter only for unknown tokens, which byte-level BPE does not have.
_REQUIRED = {
    name: _BPE[name] for name in ("type", "dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
}


def pattern_name(tokenizer: Tokenizer) -> str:
    """Return `gpt2` or `gpt4`, whether the tokenizer has the pattern by its name or in full.

    Raises:
        UserError: the tokenizer has another pattern. Programs differ in how they interpret regular expressions.
    """
    for name, pattern in PATTERNS.items():
        if tokenizer.pattern in (name, pattern):
            return name
    raise UserError(
        f"tokenizer.pattern: expected {' or '.join(PATTERNS)}, got {tokenizer.pattern!r}, which other programs may "
        "interpret differently; train a tokenizer with one of the expected patterns"
    )


def token_texts(tokenizer: Tokenizer) -> list[str]:
    """Return the tokens in the order of their ids: special tokens as plain text, the others in GPT-2's alphabet.

    Raises:
        UserError: a special token is ambiguous: it is also an ordinary token, or its text spells other bytes in the
            alphabet.
    """
    special = {text.encode(): text for text in tokenizer.special_tokens}
    made = {bytes([byte]) for byte in range(256)} | {left + right for left, right in tokenizer.merges}
    for data, text in special.items():
        spelled = _bytes_of(text)
        if spelled != data and (spelled is not None or data in made):
            raise UserError(
                f"tokenizer.special_tokens: {text!r} cannot be exported, since it is also an ordinary token or spells "
                "other bytes in GPT-2's alphabet; use printable ASCII characters, such as '<|name|>'"
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
    pattern = _ONIGURUMA[pattern_name(tokenizer)]
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
            "vocab": {text: token_id for token_id, text in enumerate(texts)},
            "merges": merge_texts(tokenizer),
        },
    }


def read_tokenizer_json(path: Path) -> Tokenizer:
    """Read `tokenizer.json`.

    Raises:
        UserError: the file is missing or damaged, or it has a setting that our tokenizer cannot reproduce; the message
            names the setting.
    """
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); choose a folder that contains it") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged, or not a tokenizer ({type(error).__name__}: {error}); download or export it again"
        ) from error


def _parse(content: dict[str, Any]) -> Tokenizer:
    bpe, added = content["model"], content.get("added_tokens", [])
    unsupported = [f"model.{name} {bpe[name]}" for name, ours in _REQUIRED.items() if (bpe.get(name) or ours) != ours]
    unsupported += [f"{name} of {token['content']!r}" for token in added for name in _CONTEXT_FLAGS if token.get(name)]
    if content.get("normalizer") is not None:
        unsupported.append(f"normalizer {content['normalizer']['type']}")
    post_processor = content.get("post_processor")
    if post_processor is not None and not _begins_document(post_processor):
        unsupported.append(f"post_processor {post_processor['type']}")
    if unsupported:
        raise UserError(f"cannot be imported, since our tokenizer does not support: {', '.join(unsupported)}")
    pattern = _pattern(content["pre_tokenizer"])
    special = {token["id"]: token["content"] for token in added}
    vocab = {token_id: _token(text) for text, token_id in bpe["vocab"].items() if token_id not in special}
    vocab |= {token_id: text.encode() for token_id, text in special.items()}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in bpe["merges"]]
    merges = [(_token(left), _token(right)) for left, right in pairs]
    return Tokenizer(vocab, merges, list(special.values()), pattern)


def _begins_document(post_processor: dict[str, Any]) -> bool:
    """Whether a post-processor adds nothing to a text but an end-of-text token before it, as `lm generate` does."""
    match post_processor:
        case {"type": "ByteLevel"}:  # which changes only offsets
            return True
        case {"type": "Sequence", "processors": list(processors)}:
            return all(map(_begins_document, processors))
        case {"type": "TemplateProcessing", "single": [*before, {"Sequence": {"id": "A"}}]}:
            return before in ([], [{"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}])
    return False


def _pattern(pre_tokenizer: dict[str, Any]) -> str:
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, **others} if others.get("use_regex", True):
            return "gpt2"
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            for name, pattern in _ONIGURUMA.items():
                if expression == pattern:
                    return name
    raise UserError(
        f"cannot be imported, since its pre_tokenizer has none of our patterns ({', '.join(PATTERNS)}): "
        f"{json.dumps(pre_tokenizer)}"
    )


def _token(text: str) -> bytes:
    data = _bytes_of(text)
    if data is None:
        raise UserError(f"cannot be imported: the token {text!r} is not written in GPT-2's byte alphabet")
    return data


def _bytes_of(text: str) -> bytes | None:
    """The bytes that `text` spells in GPT-2's alphabet, or None if it contains other characters."""
    try:
        return from_text(text)
    except KeyError:
        return None
