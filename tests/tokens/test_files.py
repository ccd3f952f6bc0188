import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lm.errors import UserError
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.files import TokenFiles, open_tokens
from lm.training.batches import batch
from lm.training.evaluation import windows
from tests.tokens.conftest import END, TEXTS, change, make_tokenizer, replacements

DTYPE = np.dtype("<u2")
TOKENS = np.arange(1000, dtype=DTYPE)


def write_shards(folder: Path, shards: list[np.ndarray]) -> TokenFiles:
    paths = [folder / f"train-{index:05d}.bin" for index in range(len(shards))]
    for path, shard in zip(paths, shards, strict=True):
        shard.astype(DTYPE).tofile(path)
    return TokenFiles(paths, [len(shard) for shard in shards], DTYPE)


@pytest.fixture(params=[[], [1], [999], [300, 310, 900]], ids=["1 file", "first token", "last token", "4 files"])
def tokens(request: pytest.FixtureRequest, tmp_path: Path) -> TokenFiles:
    """TOKENS in files with different borders between them."""
    return write_shards(tmp_path, np.split(TOKENS, request.param))


@pytest.fixture
def halves(tmp_path: Path) -> TokenFiles:
    return write_shards(tmp_path, np.split(TOKENS, 2))


def test_slices_are_those_of_the_array(tokens: TokenFiles) -> None:
    assert len(tokens) == 1000
    for index in (slice(0, 5), slice(990, 1000), slice(-7, None), slice(-7, -6), slice(3, 3), slice(995, 2000)):
        assert tokens[index].tolist() == TOKENS[index].tolist() and tokens[index].dtype == TOKENS.dtype


def test_a_slice_with_gaps_is_refused(halves: TokenFiles) -> None:
    for index in (slice(0, 10, 2), slice(None, None, -1)):
        with pytest.raises(ValueError, match=r"^expected a slice of consecutive tokens, got a step of"):
            halves[index]


positions = st.none() | st.integers(-35, 35)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.lists(st.tuples(positions, positions), min_size=1))
def test_slices_across_files_are_those_of_the_concatenated_array(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], borders: list[tuple[int | None, int | None]]
) -> None:
    shards = [100 * number + np.arange(count) for number, count in enumerate(counts)]
    tokens, whole = write_shards(tmp_path_factory.getbasetemp(), shards), np.concatenate(shards)
    assert len(tokens) == len(whole)
    for begin, end in borders:
        part = tokens[begin:end]
        assert part.tolist() == whole[begin:end].tolist() and part.dtype == DTYPE


def test_batches_and_windows_are_those_of_the_array(tokens: TokenFiles) -> None:
    for step in (0, 7, 100):
        batches = [batch(source, range(0, 980, 16), step, 4, 16, 1) for source in (tokens, TOKENS)]
        for ours, theirs in zip(*batches, strict=True):
            assert torch.equal(ours, theirs)
    for ours, theirs in zip(windows(tokens, 7, 16, 5), windows(TOKENS, 7, 16, 5), strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_of_many_files_few_are_open(tmp_path: Path) -> None:
    tokens = write_shards(tmp_path, np.split(TOKENS, 100))
    before = len(os.listdir("/dev/fd"))
    first = tokens[5:10]
    for begin in np.random.default_rng(1).permutation(990).tolist():
        assert tokens[begin : begin + 21].tolist() == TOKENS[begin : begin + 21].tolist()
    # The map of a file stays as long as an array of its tokens.
    assert first.tolist() == [5, 6, 7, 8, 9]
    assert len(os.listdir("/dev/fd")) <= before + 65


def test_the_mapped_tokens_cannot_be_changed(folder: Path) -> None:
    tokens, _ = open_tokens(folder, "train", None)
    with pytest.raises(ValueError, match="read-only"):
        tokens[:2][0] = 1


@pytest.mark.parametrize("size", [0, 2, 998])
def test_a_file_that_becomes_shorter_is_named(halves: TokenFiles, tmp_path: Path, size: int) -> None:
    before = halves[510:520]
    path = tmp_path / "train-00001.bin"
    message = f"{path}: has become shorter during training; make it again with: dvc repro encode_memmap"
    for tokens in (halves, TokenFiles([tmp_path / "train-00000.bin", path], [500, 500], DTYPE)):
        os.truncate(path, size)
        for index in (slice(490, 510), slice(990, 1000)):
            with pytest.raises(UserError) as error:
                tokens[index]
            assert str(error.value) == message
        assert tokens[490:500].tolist() == TOKENS[490:500].tolist()
    TOKENS[500:].tofile(path)
    assert halves[490:520].tolist() == TOKENS[490:520].tolist() and len(before) == 10


def test_a_file_that_is_missing_when_it_is_first_read_is_named(halves: TokenFiles, tmp_path: Path) -> None:
    path = tmp_path / "train-00001.bin"
    path.unlink()
    assert halves[490:500].tolist() == TOKENS[490:500].tolist()
    with pytest.raises(UserError) as error:
        halves[499:501]
    assert str(error.value) == (
        f"{path}: cannot be read (No such file or directory); make it with: dvc repro encode_memmap"
    )


def test_a_file_that_is_replaced_is_still_read(halves: TokenFiles, tmp_path: Path) -> None:
    assert halves[499:501].tolist() == [499, 500]
    for path in tmp_path.iterdir():
        path.unlink()
        path.write_bytes(b"")
    assert halves[495:510].tolist() == TOKENS[495:510].tolist()


def test_the_text_round_trips(folder: Path, tokenizer: Tokenizer) -> None:
    tokens, facts = open_tokens(folder, "val", None)
    assert tokenizer.decode(tokens[:]) == TEXTS["val"][0]
    assert (facts["bytes"], facts["documents"], facts["entropy_bits"]) == (3, 1, 7.5)


def test_the_shards_are_one_sequence(sharded: Path, tokenizer: Tokenizer) -> None:
    tokens, facts = open_tokens(sharded, "train", tokenizer.hash)
    text = f"the cat{END}a{END}the the cats{END}ab{END}a the{END}the{END}"
    assert tokenizer.decode(tokens[:]) == text
    assert [shard["count"] for shard in facts["shards"]] == [8, 11, 5] and facts["count"] == len(tokens) == 24
    names = {path.name for path in sharded.iterdir()}
    assert names == {"train-00000.bin", "train-00001.bin", "train-00002.bin", "val.bin", "manifest.json"}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda manifest: manifest.update(tokenizer_hash="0" * 64), "the tokens were encoded by a different tokenizer"),
        (lambda manifest: manifest.update(dtype="uint32"), "expected dtype uint16 for a vocabulary of 260, got uint32"),
        (lambda manifest: manifest.update(vocab_size=70_000), "expected dtype uint32 for a vocabulary of 70,000"),
        (lambda manifest: manifest.pop("vocab_size"), "vocab_size: missing key, expected a whole number"),
        (lambda manifest: manifest.pop("splits"), "manifest.json: splits: missing key, expected a mapping"),
        (lambda manifest: manifest["splits"].pop("train"), "manifest.json: no entry for the split 'train'"),
        (
            lambda manifest: manifest["splits"]["train"].update(count="12"),
            "splits.train.count: expected a whole number, got '12'",
        ),
        (
            lambda manifest: manifest["splits"]["train"].update(count=25),
            "manifest.json: expected 25 tokens in the shards of train, got 24",
        ),
        (
            lambda manifest: [of.update(count=of["count"] + 1) for of in shards_and_split(manifest)],
            "train-00001.bin: expected 24 bytes for 12 tokens of uint16, got 22",
        ),
        (
            lambda manifest: manifest["splits"]["train"]["shards"][2].pop("sampled_sha256"),
            "splits.train.shards[2].sampled_sha256: missing key, expected text",
        ),
        (
            lambda manifest: manifest["splits"]["train"]["shards"].reverse(),
            "train-00000.bin: expected 10 bytes for 5 tokens of uint16, got 16",
        ),
        (lambda manifest: manifest["splits"]["train"].update(shards=[]), "splits.train.shards: expected"),
    ],
)
def test_a_manifest_that_does_not_fit_is_rejected(
    sharded: Path, tokenizer: Tokenizer, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(sharded / "manifest.json", edit)
    with pytest.raises(UserError) as error:
        open_tokens(sharded, "train", tokenizer.hash)
    assert message in str(error.value) and "dvc repro encode_memmap" in str(error.value)


def shards_and_split(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of the split `train` and its second shard."""
    train = manifest["splits"]["train"]
    return [train, train["shards"][1]]


def test_a_truncated_file_is_rejected(sharded: Path) -> None:
    path = sharded / "train-00001.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train-00001\.bin: expected 22 bytes for 11 tokens of uint16, got 20;"):
        open_tokens(sharded, "train", None)


def test_a_changed_byte_is_rejected(sharded: Path) -> None:
    path = sharded / "train-00002.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(UserError, match=r"train-00002\.bin: changed since it was written"):
        open_tokens(sharded, "train", None)


def test_shards_in_the_wrong_order_are_rejected(sharded: Path) -> None:
    first, last = sharded / "train-00000.bin", sharded / "train-00002.bin"
    first.write_bytes(last.read_bytes() + first.read_bytes()[10:])
    with pytest.raises(UserError, match=r"train-00000\.bin: changed since it was written"):
        open_tokens(sharded, "train", None)


def test_the_tokens_of_another_tokenizer_are_rejected(folder: Path) -> None:
    with pytest.raises(UserError, match="by a different tokenizer; make it with: dvc repro encode_memmap"):
        open_tokens(folder, "val", make_tokenizer("gpt4").hash)


@pytest.mark.parametrize("name", ["manifest.json", "train-00001.bin"])
def test_the_error_names_a_missing_file(sharded: Path, name: str) -> None:
    (sharded / name).unlink()
    reason = "there is no such file" if name == "manifest.json" else r"cannot be read \(No such file or directory\)"
    with pytest.raises(UserError, match=rf"{name}: {reason}; make it with: dvc repro encode_memmap"):
        open_tokens(sharded, "train", None)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]"])
def test_a_manifest_that_is_not_a_json_object_is_rejected(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json:.*make it with: dvc repro encode_memmap"):
        open_tokens(folder, "train", None)


def test_any_value_replaced_in_a_manifest_is_one_line(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    for changed in replacements(manifest):
        (folder / "manifest.json").write_text(json.dumps(changed))
        try:
            open_tokens(folder, "train", None)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
