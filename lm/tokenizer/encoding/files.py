"""The files of a tokenizer: GPT-2's `vocab.json` and `merges.txt`, and `pre_tokenizer.json`.

`vocab.json` maps each token, including special tokens, to its id. `merges.txt` holds one merge per line, in order,
after the line `#version: 0.2`. Both are written in GPT-2's byte alphabet, so other libraries can read them.
`pre_tokenizer.json` holds the pattern and the special tokens, which GPT-2 has in its code instead, and the version of
Unicode that says what a letter is. It is not called `tokenizer.json` or `tokenizer_config.json`, because other
libraries expect something else in files with those names.

Every function raises a UserError that names the file if it is missing, damaged, or cannot be written.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from lm.atomic import write_json, write_text
from lm.errors import UserError, quote
from lm.schema import read_bytes, read_json
from lm.tokenizer.text.byte_alphabet import from_text, to_text
from lm.tokenizer.text.categories import UNICODE_VERSION
from lm.tokenizer.text.patterns import compile_pattern

_ADVICE = "make it with: dvc repro train_bpe"
_VOCAB_ADVICE = f"{_ADVICE}, or choose a file in GPT-2's format"
_VERSION = "#version"


@dataclass(frozen=True, kw_only=True)
class PreTokenizerFile:
    """The content of `pre_tokenizer.json`.

    Attributes:
        pattern: A name in `PATTERNS`, such as `gpt2`, or a regular expression.
        special_tokens: Texts that are always one token.
        unicode_version: The version of Unicode whose categories the pattern uses. The only one so far is 16.0.0, so a
            file from before the version was recorded is read as one with this version.
        ignore_merges: Whether a pre-token that is in the vocabulary is one token, even if the merges do not make it.
            Only files of tokenizers that do so contain it.
    """

    pattern: str
    special_tokens: list[str]
    unicode_version: str = UNICODE_VERSION
    ignore_merges: bool = False

    def __post_init__(self) -> None:
        compile_pattern(self.pattern)
        if "" in self.special_tokens:
            raise ValueError(f"special_tokens: expected non-empty texts, got {quote(self.special_tokens)}")
        if self.unicode_version != UNICODE_VERSION:
            raise ValueError(
                f"unicode_version: expected {UNICODE_VERSION!r}, got {quote(self.unicode_version)}, with which some "
                "texts would have other ids; use the version of this project that made the tokenizer"
            )


def read_vocab(path: Path) -> dict[int, bytes]:
    token_ids = read_json(path, dict[str, int], _VOCAB_ADVICE)
    try:
        tokens = [*map(from_text, token_ids)]
    except KeyError as error:
        raise _not_in_alphabet(path, token_ids, error) from error
    vocab = dict(zip(token_ids.values(), tokens, strict=True))
    if len(vocab) < len(token_ids):
        ((twice, _),) = Counter(token_ids.values()).most_common(1)
        first, second, *_ = [text for text, token_id in token_ids.items() if token_id == twice]
        raise UserError(f"{path}: the id {twice} appears twice, for {quote(first)} and {quote(second)}")
    return vocab


def read_merges(path: Path) -> list[tuple[bytes, bytes]]:
    try:
        lines = read_bytes(path, _VOCAB_ADVICE).decode().replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; {_VOCAB_ADVICE}") from error
    merges = []
    for number, line in enumerate(lines, start=1):
        if not line or (number == 1 and line.startswith(_VERSION)):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise UserError(f"{path}:{number}: expected two tokens separated by a space, got {quote(line)}")
        try:
            merges.append((from_text(left), from_text(right)))
        except KeyError as error:
            raise _not_in_alphabet(f"{path}:{number}", (left, right), error) from error
    return merges


def read_pre_tokenizer(path: Path) -> PreTokenizerFile:
    return read_json(path, PreTokenizerFile, _ADVICE)


def write_vocab(path: Path, vocab: dict[int, bytes]) -> None:
    write_json(path, {to_text(token): token_id for token_id, token in vocab.items()})


def write_merges(path: Path, merges: list[tuple[bytes, bytes]]) -> None:
    lines = [f"{_VERSION}: 0.2"] + [f"{to_text(left)} {to_text(right)}" for left, right in merges]
    write_text(path, "\n".join(lines) + "\n")


def write_pre_tokenizer(path: Path, pattern: str, special_tokens: list[str], ignore_merges: bool) -> None:
    content = asdict(PreTokenizerFile(pattern=pattern, special_tokens=special_tokens, ignore_merges=ignore_merges))
    if not ignore_merges:
        del content["ignore_merges"]
    write_json(path, content)


def _not_in_alphabet(where: Path | str, texts: Iterable[str], error: KeyError) -> UserError:
    character = error.args[0]
    text = next(text for text in texts if character in text)
    return UserError(f"{where}: {quote(text)} contains {quote(character)}, which is not in GPT-2's byte alphabet")
