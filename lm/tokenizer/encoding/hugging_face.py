r"""Reading `tokenizer.json`, the format of Hugging Face's library tokenizers.

Byte-level BPE as in the files of GPT-2, Llama 3, Qwen and SmolLM is read: their BPE works on bytes written in GPT-2's
alphabet, and their cuts are one of our patterns, or another pattern that both libraries match the same way, or cuts at
digits followed by GPT-2's pattern. In the vocabulary, added tokens are plain text.

Only settings that change the ids are refused. Limits on the length of a text (`truncation`, `padding`) and special
tokens before each text are left out, because they are not part of our tokenizer.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from lm.errors import UserError, quote
from lm.schema import read_json, validate
from lm.tokenizer.encoding.vocab import Merges
from lm.tokenizer.text.automaton import find_obstacle
from lm.tokenizer.text.byte_alphabet import from_text
from lm.tokenizer.text.patterns import PATTERNS, compile_pattern

# The library uses Oniguruma with Ruby's syntax, where `{1,3}+` means a repeated repetition and not a possessive one.
# Without the plus, the pattern matches the same text: nothing follows that would cause backtracking.
ONIGURUMA = {name: pattern.replace("{1,3}+", "{1,3}") for name, pattern in PATTERNS.items()}

# What Oniguruma may match in another way than `regex`, although the named patterns match the same text.
_AMBIGUOUS = re.compile(r"[\d,]\}\+|\$|\(\?i")

# GPT-2's pattern for a text that was first cut before and after each digit, or each run of digits. White space before
# one is at the end of a part.
_AFTER_DIGITS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
_SINGLE_DIGITS = _AFTER_DIGITS.replace("DIGITS", r"\p{N}")
_RUNS_OF_DIGITS = _AFTER_DIGITS.replace("DIGITS", r"\p{N}+")

# The behavior and `invert` of a Split that yields the matches of our patterns. These match every character, so there is
# no text between two matches, which is where the settings of a Split differ.
_SPLITS = (("Isolated", False), ("Isolated", True), ("Removed", True))

_MAX_LISTED = 5
_ADVICE = "choose a tokenizer.json that the library tokenizers has written"
_NOT_SUPPORTED = "cannot be imported, since our tokenizer does not support"


class _AddedToken(TypedDict):
    """A token that is always one token.

    The first three flags make it depend on the text next to it, or absorb that text. The library looks for tokens
    that are `normalized` after all others.
    """

    id: int
    content: str
    single_word: NotRequired[bool]
    lstrip: NotRequired[bool]
    rstrip: NotRequired[bool]
    normalized: NotRequired[bool]


class _File(TypedDict):
    """The keys of `tokenizer.json` that change the ids; other keys are ignored."""

    added_tokens: NotRequired[list[_AddedToken]]
    normalizer: NotRequired[dict[str, Any] | None]
    pre_tokenizer: NotRequired[dict[str, Any] | None]
    post_processor: NotRequired[dict[str, Any] | None]
    model: dict[str, Any]


class _Model(TypedDict):
    """The keys of the section `model` that change the ids; others matter only for bytes that have no token."""

    vocab: dict[str, int]
    merges: list[Any]
    dropout: NotRequired[float | None]
    continuing_subword_prefix: NotRequired[str | None]
    end_of_word_suffix: NotRequired[str | None]
    ignore_merges: NotRequired[bool | None]


@dataclass(frozen=True, kw_only=True)
class TokenizerJson:
    """The arguments of a `Tokenizer`, and the special tokens that a post-processor puts before each text."""

    vocab: dict[int, bytes]
    merges: Merges
    special_tokens: list[str]
    pattern: str
    ignore_merges: bool
    before_text: list[str]


def read_tokenizer_json(path: Path) -> TokenizerJson:
    """Read `tokenizer.json`.

    Raises:
        UserError: the file is missing or damaged, or it has a setting that our tokenizer cannot reproduce; the message
            names the setting.
    """
    content = read_json(path, _File, _ADVICE, ignore_unknown_keys=True)
    try:
        return _parse(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def is_portable(pattern: str) -> bool:
    """Return whether a pattern is a regular expression that Hugging Face's library matches as `regex` does."""
    try:
        compile_pattern(pattern)
    except ValueError:
        return False
    return find_obstacle(pattern) is None and not _AMBIGUOUS.search(pattern)


def _parse(content: _File) -> TokenizerJson:
    bpe = _parse_model(content["model"])
    if unsupported := list(_unsupported(content, bpe)):
        more = f" and {len(unsupported) - _MAX_LISTED} more" if len(unsupported) > _MAX_LISTED else ""
        raise UserError(f"{_NOT_SUPPORTED}: {', '.join(unsupported[:_MAX_LISTED])}{more}")
    special = {token["id"]: token["content"] for token in content.get("added_tokens", [])}
    vocab = {token_id: _token(text) for text, token_id in bpe["vocab"].items() if token_id not in special}
    vocab |= {token_id: text.encode() for token_id, text in special.items()}
    return TokenizerJson(
        vocab=vocab,
        merges=[(_token(left), _token(right)) for left, right in map(_pair, bpe["merges"])],
        special_tokens=list(special.values()),
        pattern=_pattern(content.get("pre_tokenizer")),
        ignore_merges=bool(bpe.get("ignore_merges")),
        before_text=_before_text(content.get("post_processor"), special.values()) or [],
    )


def _parse_model(model: dict[str, Any]) -> _Model:
    if model.get("type", "BPE") != "BPE":  # the first versions of the library did not write it
        raise UserError(f"{_NOT_SUPPORTED}: model.type {_type(model)}")
    try:
        return validate(_Model, model, ignore_unknown_keys=True)
    except ValueError as error:
        raise UserError(f"model.{error}; {_ADVICE}") from error


def _unsupported(content: _File, bpe: _Model) -> Iterator[str]:
    """Yield the settings that change the ids in a way that our tokenizer cannot."""
    if bpe.get("dropout"):
        yield f"model.dropout {bpe['dropout']}"
    if bpe.get("continuing_subword_prefix"):
        yield f"model.continuing_subword_prefix {quote(bpe['continuing_subword_prefix'])}"
    if bpe.get("end_of_word_suffix"):
        yield f"model.end_of_word_suffix {quote(bpe['end_of_word_suffix'])}"
    for token in content.get("added_tokens", []):
        if flags := [flag for flag in ("single_word", "lstrip", "rstrip") if token.get(flag)]:
            yield f"{' and '.join(flags)} of {quote(token['content'])}"
    if _changes_text(content.get("normalizer")):
        yield f"normalizer {_type(content['normalizer'])}"
    added_tokens = content.get("added_tokens", [])
    if overlap := _find_overlap(added_tokens):
        yield f"the overlap of the added tokens {' and '.join(map(quote, overlap))}"
    if _before_text(content.get("post_processor"), [token["content"] for token in added_tokens]) is None:
        yield f"post_processor {_type(content['post_processor'])}"


def _find_overlap(added_tokens: list[_AddedToken]) -> tuple[str, str] | None:
    """Return two added tokens of which the library takes the one that begins later in a text."""
    first = [token["content"] for token in added_tokens if not token.get("normalized")]
    last = [token["content"] for token in added_tokens if token.get("normalized")]
    for earlier, later in product(last, first):
        if later in earlier or any(later.startswith(earlier[begin:]) for begin in range(1, len(earlier))):
            return earlier, later
    return None


def _changes_text(normalizer: Any) -> bool:
    match normalizer:
        case None:
            return False
        case {"type": "Sequence", "normalizers": [*parts]}:
            return any(map(_changes_text, parts))
    return True


def _before_text(post_processor: Any, added_tokens: Collection[str]) -> list[str] | None:
    """Return the added tokens that a post-processor puts before a text, or None if it does anything else."""
    match post_processor:
        case None | {"type": "ByteLevel"}:  # ByteLevel changes only offsets
            return []
        case {"type": "Sequence", "processors": [*parts]}:
            found: list[str] = []
            for part in parts:
                tokens = _before_text(part, added_tokens)
                if tokens is None:
                    return None
                found = tokens + found
            return found
        case {"type": "TemplateProcessing", "single": [*before, {"Sequence": {"id": "A"}}]}:
            found = []
            for part in before:
                match part:
                    case {"SpecialToken": {"id": str(token)}} if token in added_tokens:
                        found.append(token)
                    case _:
                        return None
            return found
    return None


def _pattern(pre_tokenizer: Any) -> str:
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": [only]}:
            return _pattern(only)
        case {"type": "ByteLevel", "add_prefix_space": False, **others} if others.get("use_regex", True):
            return "gpt2"
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": bool(is_single)},
                {"type": "ByteLevel", "add_prefix_space": False, **others},
            ],
        } if others.get("use_regex", True):
            return _SINGLE_DIGITS if is_single else _RUNS_OF_DIGITS
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(expression)}, **split},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if (split.get("behavior"), split.get("invert")) in _SPLITS:
            for name, pattern in ONIGURUMA.items():
                if expression == pattern:
                    return name
            if is_portable(expression):
                return expression
    raise UserError(
        f"cannot be imported, since its pre_tokenizer has none of our patterns ({', '.join(PATTERNS)}): "
        f"{quote(pre_tokenizer, limit=300)}"
    )


def _pair(merge: Any) -> tuple[str, str]:
    match merge.split(" ") if isinstance(merge, str) else merge:
        case [str(left), str(right)]:
            return left, right
    raise UserError(f"model.merges: expected pairs of tokens, got {quote(merge)}; {_ADVICE}")


def _type(section: Any) -> str:
    return quote(section.get("type")).strip("'")


def _token(text: str) -> bytes:
    data = _bytes_of(text)
    if data is None:
        raise UserError(f"cannot be imported: the token {quote(text)} is not written in GPT-2's byte alphabet")
    return data


def _bytes_of(text: str) -> bytes | None:
    """The bytes that `text` spells in GPT-2's alphabet, or None if it contains other characters."""
    try:
        return from_text(text)
    except KeyError:
        return None
