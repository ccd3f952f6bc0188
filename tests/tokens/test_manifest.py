import hashlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm.errors import UserError
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.manifest import read_text_facts, sampled_sha256, text_paths, token_dtype
from tests.tokens.conftest import END, TEXTS, change, replacements, write_text

BLOCK = 16_384


def test_the_manifest_of_token_files(folder: Path, tokenizer: Tokenizer) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(manifest["splits"]) == ["train", "val"]
    assert (manifest["dtype"], manifest["tokenizer_hash"], manifest["vocab_size"]) == ("uint16", tokenizer.hash, 260)
    data = (folder / "train.bin").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert manifest["splits"]["train"] == {
        "bytes": 17,
        "documents": 3,
        "count": 12,
        # A small file is the same block four times.
        "shards": [{"count": 12, "sha256": digest, "sampled_sha256": hashlib.sha256(4 * data).hexdigest()}],
    }
    assert manifest["splits"]["val"]["entropy_bits"] == 7.5
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "train.bin", "val.bin"]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (200_000, "<u4")])
def test_the_dtype_is_the_smallest_that_holds_every_id(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == np.dtype(dtype)


def test_the_text_files_of_a_split(tmp_path: Path) -> None:
    raw = write_text(tmp_path, {**TEXTS, "train": [f"a{END}", f"é{END}{END}"]})
    facts = read_text_facts(raw)
    assert [path.name for path in text_paths(raw, "train", facts["train"])] == ["train-00000.txt", "train-00001.txt"]
    assert [path.name for path in text_paths(raw, "val", facts["val"])] == ["val.txt"]
    assert (facts["train"]["bytes"], facts["train"]["documents"]) == (3, 3)


def test_a_text_of_the_wrong_size_is_rejected(raw: Path) -> None:
    (raw / "val.txt").write_text(f"longer{END}")
    with pytest.raises(UserError, match=r"val\.txt: expected 16 bytes as in manifest\.json, got 19; make it with"):
        read_text_facts(raw)


def test_a_split_without_documents_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"val\.txt: contains no document"):
        read_text_facts(write_text(tmp_path, {**TEXTS, "val": [""]}))


@pytest.mark.parametrize("name", ["manifest.json", "train-00001.txt", "val.txt"])
def test_the_error_names_a_missing_input_and_the_stage_that_makes_it(tmp_path: Path, name: str) -> None:
    raw = write_text(tmp_path, {**TEXTS, "train": [f"a{END}", f"b{END}"]})
    (raw / name).unlink()
    reason = "there is no such file" if name == "manifest.json" else r"cannot be read \(No such file or directory\)"
    with pytest.raises(UserError, match=rf"{name}: {reason}; make it with: dvc repro download"):
        read_text_facts(raw)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda manifest: manifest["splits"].pop("val"), "no entry for the split 'val'"),
        (lambda manifest: manifest["splits"]["train"].pop("shards"), "splits.train.shards: missing key"),
        (lambda manifest: manifest["splits"]["train"].update(shards=[]), "splits.train.shards: expected"),
        (lambda manifest: manifest["splits"]["train"]["shards"].append("a"), "splits.train.shards[1]: expected"),
    ],
)
def test_a_manifest_of_text_that_does_not_fit_is_rejected(
    raw: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(raw / "manifest.json", edit)
    with pytest.raises(UserError) as error:
        read_text_facts(raw)
    assert message in str(error.value) and "dvc repro download" in str(error.value)


def test_any_value_replaced_in_the_manifest_of_text_is_one_line(raw: Path) -> None:
    manifest = json.loads((raw / "manifest.json").read_text())
    for changed in replacements(manifest):
        (raw / "manifest.json").write_text(json.dumps(changed))
        try:
            read_text_facts(raw)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of a million bytes."""
    path = tmp_path / "train.bin"
    path.write_bytes(random.Random(1).randbytes(1_000_000))
    return path


def test_the_sampled_checksum_by_hand(large: Path) -> None:
    # The first and the last block, and two more at a third of the distance between them: (1,000,000 - 16,384) / 3.
    data = large.read_bytes()
    samples = b"".join(data[begin : begin + BLOCK] for begin in (0, 327_872, 655_744, 983_616))
    assert sampled_sha256(large) == hashlib.sha256(samples).hexdigest()


@pytest.mark.parametrize(
    ("position", "is_found"),
    [(0, True), (BLOCK - 1, True), (BLOCK, False), (327_872, True), (655_744, True), (900_000, False), (-1, True)],
)
def test_a_changed_byte_in_a_sampled_block_is_found(large: Path, position: int, is_found: bool) -> None:
    before = sampled_sha256(large)
    data = bytearray(large.read_bytes())
    data[position] ^= 1
    large.write_bytes(data)
    assert (sampled_sha256(large) != before) == is_found


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 4 * BLOCK])
def test_small_files_are_checked_wholly(tmp_path: Path, size: int) -> None:
    path = tmp_path / "val.bin"
    path.write_bytes(bytes(size))
    before = sampled_sha256(path)
    for position in {*range(0, size, 1000), size - 1}:
        data = bytearray(size)
        data[position] = 1
        path.write_bytes(data)
        assert sampled_sha256(path) != before, position


def test_a_large_file_is_not_read_wholly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.bin"
    with path.open("wb") as file:
        file.truncate(1 << 30)  # without data, it takes no space on the disk
    read: list[int] = []

    class CountingFile(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size) or b""
            read.append(len(data))
            return data

    monkeypatch.setattr(Path, "open", lambda path, mode: CountingFile(path, mode))
    sampled_sha256(path)
    assert sum(read) == 4 * BLOCK


def test_a_file_that_cannot_be_sampled_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.bin: cannot be read \(No such file or directory\)"):
        sampled_sha256(tmp_path / "none.bin")
