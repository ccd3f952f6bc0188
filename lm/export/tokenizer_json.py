"""`tokenizer.json`, the file of the library tokenizers: a tokenizer of ours as one, and one as ours.

Pre-tokens are cut by the named pattern and BPE works on the bytes in GPT-2's alphabet, so the ids are the same. Only
characters newer than the Unicode of the library that reads the file may be letters to us and not to it.

Special tokens stand in the vocabulary as plain text, everything else in the alphabet.
"""

import json
from pathlib import Path
from typing import Any

from lm.errors import UserError
from lm.tokenizer.text.byte_alphabet import from_text, to_text
from lm.tokenizer.text.pretokenization import PATTERNS
from lm.tokenizer.tokenizer import Tokenizer

# The patterns for Oniguruma in Ruby's syntax, where `{1,3}+` is a repeated repetition. Without the plus it is the same
# here: nothing follows it that would make the expression step back.
_ONIGURUMA = {name: pattern.replace("{1,3}+", "{1,3}") for name, pattern in PATTERNS.items()}

_SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
_BESIDE = ("single_word", "lstrip", "rstrip")  # what makes a token depend on the text beside it, or take it in
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
# What of it changes the ids; without unknown tokens the rest does not.
_OURS = {
    name: _BPE[name] for name in ("type", "dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
}


def pattern_name(tokenizer: Tokenizer) -> str:
    """`gpt2` or `gpt4`, however the pattern is given.

    Raises:
        UserError: it is another; regular expressions mean different things to different programs.
    """
    for name, pattern in PATTERNS.items():
        if tokenizer.pattern in (name, pattern):
            return name
    raise UserError(
        f"tokenizer.pattern: {tokenizer.pattern!r} cannot be exported, since other programs may cut text differently "
        f"by it; it would have to be {' or '.join(PATTERNS)}"
    )


def token_texts(tokenizer: Tokenizer) -> list[str]:
    """The tokens in the order of their ids: special ones as they are, the others in GPT-2's alphabet.

    Raises:
        UserError: a special token would read as other bytes in the alphabet, or have two texts since merges make it.
    """
    special = {text.encode(): text for text in tokenizer.special_tokens}
    made = {bytes([byte]) for byte in range(256)} | {left + right for left, right in tokenizer.merges}
    for data, text in special.items():
        spelled = _bytes_of(text)
        if spelled != data and (spelled is not None or data in made):
            raise UserError(
                f"tokenizer.special_tokens: {text!r} cannot be exported, since it is also a spelling of other bytes or "
                "merges; it would have to be of plain letters and signs, such as '<|name|>'"
            )
    tokens = (tokenizer.vocab[token_id] for token_id in range(tokenizer.vocab_size))
    return [special.get(token) or to_text(token) for token in tokens]


def merge_texts(tokenizer: Tokenizer) -> list[str]:
    """The merges as in `merges.txt`: the two tokens in GPT-2's alphabet, parted by a space."""
    return [f"{to_text(left)} {to_text(right)}" for left, right in tokenizer.merges]


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer.json`; a UserError says what it cannot hold."""
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
    """The tokenizer of such a file as ours.

    Raises:
        UserError: the file is missing or damaged, or does something to text that ours does not; the message names it.
    """
    try:
        return _tokenizer(json.loads(path.read_text(encoding="utf-8")))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a folder that holds it") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged, or no tokenizer ({type(error).__name__}: {error})") from error


def _tokenizer(content: dict[str, Any]) -> Tokenizer:
    bpe, added = content["model"], content.get("added_tokens", [])
    unlike = [f"model.{name} {bpe[name]}" for name, ours in _OURS.items() if (bpe.get(name) or ours) != ours]
    unlike += [f"{token['content']!r} with {name}" for token in added for name in _BESIDE if token.get(name)]
    if content.get("normalizer") is not None:
        unlike.append(f"normalizer {content['normalizer']['type']}")
    post_processor = content.get("post_processor")
    if post_processor is not None and post_processor["type"] != "ByteLevel":  # which moves offsets alone
        unlike.append(f"post_processor {post_processor['type']}")
    if unlike:
        raise UserError(f"cannot be imported, since our tokenizer has no {', no '.join(unlike)}")
    pattern = _pattern(content["pre_tokenizer"])
    special = {token["id"]: token["content"] for token in added}
    vocab = {token_id: _token(text) for text, token_id in bpe["vocab"].items() if token_id not in special}
    vocab |= {token_id: text.encode() for token_id, text in special.items()}
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in bpe["merges"]]
    merges = [(_token(left), _token(right)) for left, right in pairs]
    return Tokenizer(vocab, merges, list(special.values()), pattern)


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
        f"cannot be imported, since its pre_tokenizer cuts text by none of our patterns {', '.join(PATTERNS)}: "
        f"{json.dumps(pre_tokenizer)}"
    )


def _token(text: str) -> bytes:
    data = _bytes_of(text)
    if data is None:
        raise UserError(f"cannot be imported: the token {text!r} is not written in GPT-2's byte alphabet")
    return data


def _bytes_of(text: str) -> bytes | None:
    """What `text` spells in GPT-2's alphabet; None if it is not written in it."""
    try:
        return from_text(text)
    except KeyError:
        return None
