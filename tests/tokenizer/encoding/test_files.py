import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiktoken.load

from lm.errors import UserError
from lm.tokenizer.encoding.vocab import build_vocab
from lm.tokenizer.tokenizer import Tokenizer

END = "<|endoftext|>"
SPECIAL = [END, "<|two words|>", "<|é|>"]
MERGES = [(b"h", b"e"), (b" ", b"t"), (b" t", b"he"), ("é".encode()[:1], "é".encode()[1:]), (b"#", b"v")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Tokenizer(build_vocab(MERGES, SPECIAL), MERGES, SPECIAL, r"\s?\w+").save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_a_saved_tokenizer_is_loaded_unchanged(folder: Path) -> None:
    loaded = Tokenizer.load(folder)
    assert loaded.merges == MERGES
    assert (loaded.vocab, loaded.special_tokens, loaded.pattern) == (build_vocab(MERGES, SPECIAL), SPECIAL, r"\s?\w+")
    assert loaded.hash == Tokenizer(build_vocab(MERGES, SPECIAL), MERGES, SPECIAL, r"\s?\w+").hash
    assert loaded.encode(f"he the é{END}<|é|>") == [256, 258, 220, 259, 261, 263]


def test_the_files_have_the_formats_of_gpt2(folder: Path) -> None:
    assert (folder / "merges.txt").read_text(encoding="utf-8") == "#version: 0.2\nh e\nĠ t\nĠt he\nÃ ©\n# v\n"
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert (vocab["!"], vocab["Ġ"], vocab["Ġthe"], vocab[END]) == (0, 220, 258, 261)


def test_tiktoken_reads_the_files(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    tokenizer.save(tmp_path)
    # tiktoken itself checks that vocab.json and merges.txt fit together.
    ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(str(tmp_path / "merges.txt"), str(tmp_path / "vocab.json"))
    assert ranks == {token: token_id for token_id, token in tokenizer.vocab.items() if token != END.encode()}


def test_merges_without_a_version_line_and_with_windows_line_endings(folder: Path) -> None:
    path = folder / "merges.txt"
    lines = path.read_text(encoding="utf-8").split("\n")[1:]
    path.write_bytes("\r\n".join(lines).encode())
    assert Tokenizer.load(folder).merges == MERGES


def test_special_tokens_and_pattern_of_gpt2s_files_are_arguments(folder: Path) -> None:
    tokenizer = Tokenizer.from_files(folder / "vocab.json", str(folder / "merges.txt"), [END, "<|new|>"])
    assert tokenizer.encode(f"{END}<|new|>") == [261, 264]
    assert tokenizer.pattern == "gpt2"


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "pre_tokenizer.json"])
def test_the_error_names_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: there is no such file; make it with: dvc repro train_bpe"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("vocab.json", "}", "", r"vocab\.json:\d+: not valid JSON"),
        ("vocab.json", '"he": 256', '"he": "256"', r"vocab\.json: he: expected a whole number, got '256'"),
        ("vocab.json", '"he": 256', '"he": 257', r"vocab\.json: the id 257 appears twice, for 'he' and 'Ġt'"),
        ("vocab.json", '"he": 256', '"Ġt": 256', r"vocab\.json: the key 'Ġt' appears twice"),
        ("vocab.json", '"he": 256', '"h e": 256', r"vocab\.json: 'h e' contains ' ', which is not in GPT-2's"),
        ("vocab.json", '"he": 256', '"hh": 256', r"vocab\.json and .*merges\.txt: merge 1 .*b'he' is not"),
        ("vocab.json", '"he": 256', '"he": 999', r"vocab\.json and .*merges\.txt: expected the ids 0 to 263"),
        ("merges.txt", "h e\n", "h e x\n", r"merges\.txt:2: expected two tokens separated by a space, got 'h e x'"),
        ("merges.txt", "h e\n", "h \n", r"merges\.txt:2: expected two tokens separated by a space, got 'h '"),
        ("merges.txt", "h e\n", "h 本\n", r"merges\.txt:2: '本' contains '本', which is not in GPT-2's byte alphabet"),
        ("merges.txt", "h e\n", "", r"merges\.txt: merge 2 .*no merge makes b'he'"),
        ("pre_tokenizer.json", "pattern", "patern", r"pre_tokenizer\.json: patern: unknown key; did you mean pattern"),
        ("pre_tokenizer.json", f'"{END}"', "7", r"pre_tokenizer\.json: special_tokens\[0\]: expected text, got 7"),
        ("pre_tokenizer.json", f'"{END}"', '""', r"special_tokens: expected non-empty texts, got \[''"),
        ("pre_tokenizer.json", f'"{END}"', r'"\ud800"', r"special_tokens\[0\]: expected text, got '\\ud800'; make it"),
        ("pre_tokenizer.json", "16.0.0", "17.0.0", r"unicode_version: expected '16\.0\.0', got '17\.0\.0', with which"),
        (
            "pre_tokenizer.json",
            r"\\w+",
            r"\\w+(",
            r"pre_tokenizer\.json: pattern: .*got '\\\\s\?\\\\w\+\(': missing \) at position 7",
        ),
    ],
)
def test_the_error_names_a_damaged_file(folder: Path, name: str, old: str, new: str, message: str) -> None:
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        Tokenizer.load(folder)


def test_files_from_before_the_unicode_version_was_recorded(folder: Path) -> None:
    path = folder / "pre_tokenizer.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    assert settings.pop("unicode_version") == "16.0.0"
    before = Tokenizer.load(folder).hash
    path.write_text(json.dumps(settings), encoding="utf-8")
    assert Tokenizer.load(folder).hash == before


def replaced_values(value: Any) -> Iterator[Any]:
    """Yield copies of parsed JSON in which one value or key is another one."""
    yield from ODD_VALUES
    if isinstance(value, dict):
        for name in value:
            rest = {key: item for key, item in value.items() if key != name}
            yield rest
            yield from ({**rest, key: value[name]} for key in ODD_KEYS)
            yield from ({**value, name: item} for item in replaced_values(value[name]))
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from ([*value[:index], item, *value[index + 1 :]] for item in replaced_values(value[index]))


ODD_VALUES = [
    None,
    True,
    -1,
    0,
    0.5,
    1e999,
    10**400,
    "",
    "x",
    "\ud800",
    "\n\x1b[31m",
    "x" * 5000,
    [],
    [[]],
    {},
    {"a": 1},
]
ODD_KEYS = ["", "\ud800", "line\nbreak", "k" * 5000]


@pytest.mark.parametrize("name", ["vocab.json", "pre_tokenizer.json"])
def test_any_replaced_value_gives_one_line_or_a_tokenizer_that_works(folder: Path, name: str) -> None:
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8"))
    if name == "vocab.json":  # a few of its 264 entries
        few = {key: content.pop(key) for key in ("!", "Ġt", END)}
        contents = [
            {**content, **entries} if isinstance(entries, dict) else entries for entries in replaced_values(few)
        ]
    else:
        contents = list(replaced_values(content))
    num_refused = 0
    for changed in contents:
        path.write_text(json.dumps(changed), encoding="utf-8")
        try:
            tokenizer = Tokenizer.load(folder)
        except UserError as error:
            num_refused += 1
            message = str(error)
            assert name in message and message.isprintable() and len(message) < 600, message
        else:
            assert tokenizer.decode(tokenizer.encode(f"he the é{END}")) == f"he the é{END}"
    assert num_refused > 0.8 * len(contents)


@pytest.mark.parametrize(
    "line", ["h", "h e x", " e", "h  e", "\x1b[31m e", "x" * 5000, "h " + "x" * 5000, "\ufeffh e", "q\te", "h e\nh e"]
)
def test_any_line_of_merges_gives_one_line(folder: Path, line: str) -> None:
    path = folder / "merges.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("h e\n", f"{line}\n"), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        Tokenizer.load(folder)
    message = str(caught.value)
    assert "merges.txt" in message and message.isprintable() and len(message) < 600, message


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "pre_tokenizer.json"])
def test_what_is_not_a_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=f"{name}: expected a file, got a device or pipe"):
        Tokenizer.load(folder)


def test_files_may_be_read_by_everybody(tmp_path: Path, tokenizer: Tokenizer) -> None:
    umask = os.umask(0o022)
    try:
        tokenizer.save(tmp_path)
    finally:
        os.umask(umask)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {
        "vocab.json": "0o644", "merges.txt": "0o644", "pre_tokenizer.json": "0o644",
    }  # fmt: skip


def test_the_error_gives_the_offset_of_a_byte_that_is_not_utf8(folder: Path) -> None:
    (folder / "merges.txt").write_bytes(b"h e\n\xff x\n")
    with pytest.raises(UserError, match=r"merges\.txt: not UTF-8 at byte 4"):
        Tokenizer.load(folder)


def test_an_array_is_not_a_vocabulary(folder: Path) -> None:
    (folder / "vocab.json").write_text("[]")
    with pytest.raises(UserError, match=r"vocab\.json: the file: expected a mapping, got \[\]"):
        Tokenizer.load(folder)


def test_an_unwritable_folder_is_reported(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        tokenizer.save(tmp_path / "file" / "tokenizer")
