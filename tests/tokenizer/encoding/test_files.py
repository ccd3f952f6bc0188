import json
from pathlib import Path

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
    with pytest.raises(UserError, match=rf"{name}: cannot be read \(No such file.*; make it with: dvc repro train_bpe"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("vocab.json", "}", "", r"vocab\.json:\d+: not JSON"),
        ("vocab.json", '"he": 256', '"he": "256"', r"vocab\.json: expected a whole number as the id of 'he'"),
        ("vocab.json", '"he": 256', '"he": 257', r"vocab\.json: the id 257 appears twice, for 'he' and 'Ġt'"),
        ("vocab.json", '"he": 256', '"Ġt": 256', r"vocab\.json: the key 'Ġt' appears twice"),
        ("vocab.json", '"he": 256', '"h e": 256', r"vocab\.json: 'h e' contains ' ', which is not in GPT-2's"),
        ("vocab.json", '"he": 256', '"hh": 256', r"vocab\.json and .*merges\.txt: merge 1 .*b'he' is not"),
        ("vocab.json", '"he": 256', '"he": 999', r"vocab\.json and .*merges\.txt: expected the ids 0 to 263"),
        ("merges.txt", "h e\n", "h e x\n", r"merges\.txt:2: expected two tokens separated by a space, got 'h e x'"),
        ("merges.txt", "h e\n", "h \n", r"merges\.txt:2: expected two tokens separated by a space, got 'h '"),
        ("merges.txt", "h e\n", "h 本\n", r"merges\.txt:2: '本' contains '本', which is not in GPT-2's byte alphabet"),
        ("merges.txt", "h e\n", "", r"merges\.txt: merge 2 .*no earlier merge makes b'he'"),
        ("pre_tokenizer.json", "pattern", "patern", r"pre_tokenizer\.json: expected text under 'pattern', got None"),
        ("pre_tokenizer.json", f'"{END}"', "7", r"pre_tokenizer\.json: expected a list of non-empty texts under"),
        ("pre_tokenizer.json", r"\\w+", r"\\w+(", r"got '\\\\s\?\\\\w\+\(': missing \) at position 7"),
    ],
)
def test_the_error_names_a_damaged_file(folder: Path, name: str, old: str, new: str, message: str) -> None:
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        Tokenizer.load(folder)


def test_the_error_gives_the_offset_of_a_byte_that_is_not_utf8(folder: Path) -> None:
    (folder / "merges.txt").write_bytes(b"h e\n\xff x\n")
    with pytest.raises(UserError, match=r"merges\.txt: not UTF-8 at byte 4"):
        Tokenizer.load(folder)


def test_an_array_is_not_a_vocabulary(folder: Path) -> None:
    (folder / "vocab.json").write_text("[]")
    with pytest.raises(UserError, match=r"vocab\.json: expected a JSON object, got list"):
        Tokenizer.load(folder)


def test_an_unwritable_folder_is_reported(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        tokenizer.save(tmp_path / "file" / "tokenizer")
