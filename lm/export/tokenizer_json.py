"""Write and read `tokenizer.json`, the format of Hugging Face's library tokenizers.

The file contains the same pre-tokenization pattern, and its BPE works on bytes written in GPT-2's alphabet, so the ids
are the same as ours. What a letter is depends on the version of Unicode that the reading library knows; in tokenizers
0.23 it is the same as ours.

In the vocabulary, special tokens are plain text, and all other tokens are written in the alphabet.

When such a file is read, only settings that change the ids are refused. Limits on the length of a text (`truncation`,
`padding`) and an end-of-text token before each text are left out, because they are not part of our tokenizer.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError, quote
from lm.schema import read_json, validate
from lm.tokenizer.text.byte_alphabet import from_text, to_text
from lm.tokenizer.text.patterns import PATTERNS
from lm.tokenizer.tokenizer import Tokenizer

# The library uses Oniguruma with Ruby's syntax, where `{1,3}+` means a repeated repetition and not a possessive one.
# Without the plus, the pattern matches the same text: nothing follows that would cause backtracking.
_ONIGURUMA = {name: pattern.replace("{1,3}+", "{1,3}") for name, pattern in PATTERNS.items()}

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
    "ignore_merges": False,
}
# The behavior and `invert` of a Split that yields the matches of our patterns. These match every character, so there is
# no text between two matches, which is where the settings of a Split differ.
_SPLITS = (("Isolated", False), ("Isolated", True), ("Removed", True))

_MAX_LISTED = 5
_ADVICE = "choose a folder with a tokenizer of the library tokenizers"
_NOT_SUPPORTED = "cannot be imported, since our tokenizer does not support"


class _AddedToken(TypedDict):
    """A token that is always one token. The flags make it depend on the text next to it, or absorb that text."""

    id: int
    content: str
    single_word: NotRequired[bool]
    lstrip: NotRequired[bool]
    rstrip: NotRequired[bool]


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


def pattern_name(tokenizer: Tokenizer) -> str:
    """Return `gpt2` or `gpt4`, whether the tokenizer has the pattern by its name or in full.

    Raises:
        UserError: the tokenizer has another pattern. Programs differ in how they interpret regular expressions.
    """
    for name, pattern in PATTERNS.items():
        if tokenizer.pattern in (name, pattern):
            return name
    raise UserError(
        f"tokenizer.pattern: expected {' or '.join(PATTERNS)}, got {quote(tokenizer.pattern)}, which other programs "
        "may interpret differently; train a tokenizer with one of the expected patterns"
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
    content = read_json(path, _File, _ADVICE, ignore_unknown_keys=True)
    try:
        return _parse(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _parse(content: _File) -> Tokenizer:
    bpe = _parse_model(content["model"])
    if unsupported := list(_unsupported(content, bpe)):
        more = f" and {len(unsupported) - _MAX_LISTED} more" if len(unsupported) > _MAX_LISTED else ""
        raise UserError(f"{_NOT_SUPPORTED}: {', '.join(unsupported[:_MAX_LISTED])}{more}")
    special = {token["id"]: token["content"] for token in content.get("added_tokens", [])}
    vocab = {token_id: _token(text) for text, token_id in bpe["vocab"].items() if token_id not in special}
    vocab |= {token_id: text.encode() for token_id, text in special.items()}
    merges = [(_token(left), _token(right)) for left, right in map(_pair, bpe["merges"])]
    tokenizer = Tokenizer(vocab, merges, list(special.values()), _pattern(content.get("pre_tokenizer")))
    if bpe.get("ignore_merges"):
        _require_equal_ids_without_merges(tokenizer)
    return tokenizer


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
    if not _begins_document(content.get("post_processor")):
        yield f"post_processor {_type(content['post_processor'])}"


def _changes_text(normalizer: Any) -> bool:
    match normalizer:
        case None:
            return False
        case {"type": "Sequence", "normalizers": [*parts]}:
            return any(map(_changes_text, parts))
    return True


def _begins_document(post_processor: Any) -> bool:
    """Whether a post-processor adds nothing to a text but an end-of-text token before it, as `lm generate` does."""
    match post_processor:
        case None | {"type": "ByteLevel"}:  # ByteLevel changes only offsets
            return True
        case {"type": "Sequence", "processors": [*parts]}:
            return all(map(_begins_document, parts))
        case {"type": "TemplateProcessing", "single": [*before, {"Sequence": {"id": "A"}}]}:
            return before in ([], [{"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}])
    return False


def _require_equal_ids_without_merges(tokenizer: Tokenizer) -> None:
    """Check that a pre-token that is in the vocabulary always has that one id, as with `ignore_merges`."""
    for token_id, token in tokenizer.vocab.items():
        try:
            text = token.decode()
        except UnicodeDecodeError:
            continue  # a part of a character is never a pre-token
        if tokenizer.encode(text) != [token_id]:
            raise UserError(
                f"{_NOT_SUPPORTED}: model.ignore_merges, with which {quote(text)} is one token although the merges do "
                "not make it"
            )


def _pattern(pre_tokenizer: Any) -> str:
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": [only]}:
            return _pattern(only)
        case {"type": "ByteLevel", "add_prefix_space": False, **others} if others.get("use_regex", True):
            return "gpt2"
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(expression)}, **split},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if (split.get("behavior"), split.get("invert")) in _SPLITS:
            for name, pattern in _ONIGURUMA.items():
                if expression == pattern:
                    return name
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
