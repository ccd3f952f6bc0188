"""The files of a tokenizer: GPT-2's `vocab.json` and `merges.txt`, and `pre_tokenizer.json`.

`vocab.json` maps each token, including special tokens, to its id. `merges.txt` holds one merge per line, in order,
after the line `#version: 0.2`. Both are written in GPT-2's byte alphabet, so other libraries can read them.
`pre_tokenizer.json` holds the pattern and the special tokens, which GPT-2 has in its code instead. It is not called
`tokenizer.json` or `tokenizer_config.json`, because other libraries expect something else in files with those names.

Every function raises a UserError that names the file if it is missing, damaged, or cannot be written.
"""

import json
from pathlib import Path
from typing import Any

from lm.atomic import write_json, write_text
from lm.errors import UserError
from lm.tokenizer.text.byte_alphabet import from_text, to_text

_VERSION = "#version"


def read_vocab(path: Path) -> dict[int, bytes]:
    vocab: dict[int, bytes] = {}
    for text, token_id in _read_json(path).items():
        if type(token_id) is not int:
            raise UserError(f"{path}: expected a whole number as the id of {text!r}, got {token_id!r}")
        if token_id in vocab:
            raise UserError(f"{path}: the id {token_id} appears twice, for {to_text(vocab[token_id])!r} and {text!r}")
        vocab[token_id] = _token(text, str(path))
    return vocab


def read_merges(path: Path) -> list[tuple[bytes, bytes]]:
    merges = []
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line or (number == 1 and line.startswith(_VERSION)):
            continue
        where = f"{path}:{number}"
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise UserError(f"{where}: expected two tokens separated by a space, got {line!r}")
        merges.append((_token(pair[0], where), _token(pair[1], where)))
    return merges


def read_pre_tokenizer(path: Path) -> tuple[str, list[str]]:
    """Return the pattern and the special tokens."""
    settings = _read_json(path)
    pattern, special_tokens = settings.get("pattern"), settings.get("special_tokens")
    if not isinstance(pattern, str) or not pattern:
        raise UserError(f"{path}: expected text under 'pattern', got {pattern!r}")
    if not isinstance(special_tokens, list) or not all(isinstance(token, str) and token for token in special_tokens):
        raise UserError(f"{path}: expected a list of non-empty texts under 'special_tokens', got {special_tokens!r}")
    return pattern, special_tokens


def write_vocab(path: Path, vocab: dict[int, bytes]) -> None:
    write_json(path, {to_text(token): token_id for token_id, token in vocab.items()})


def write_merges(path: Path, merges: list[tuple[bytes, bytes]]) -> None:
    lines = [f"{_VERSION}: 0.2"] + [f"{to_text(left)} {to_text(right)}" for left, right in merges]
    write_text(path, "\n".join(lines) + "\n")


def write_pre_tokenizer(path: Path, pattern: str, special_tokens: list[str]) -> None:
    write_json(path, {"pattern": pattern, "special_tokens": special_tokens})


def _token(text: str, where: str) -> bytes:
    try:
        return from_text(text)
    except KeyError as error:
        raise UserError(
            f"{where}: {text!r} contains {error.args[0]!r}, which is not in GPT-2's byte alphabet"
        ) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it with: dvc repro train_bpe") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; make it again: dvc repro train_bpe") from error


def _read_json(path: Path) -> dict[str, Any]:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            duplicate = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"{path}: the key {duplicate!r} appears twice")
        return values

    try:
        values = json.loads(_read(path), object_pairs_hook=without_duplicates)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}; make it again: dvc repro train_bpe") from error
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, or deeply nested lists
        raise UserError(f"{path}: cannot be read ({error}); make it again: dvc repro train_bpe") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values
