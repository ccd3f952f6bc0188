"""The stages from text to tokens give the same results whether a split is one file or many."""

import contextlib
import io
import itertools
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lm import shards
from lm.corpus.config import END_OF_TEXT
from lm.corpus.stories import stories
from lm.tokens.files import open_tokens
from tests.pipeline.conftest import PROJECT

FLAGS = {
    "download": ["--raw", "raw", "--cache", "cache", "--metrics", "metrics/download.json"],
    "train_bpe": ["--raw", "raw", "--tokenizer", "tokenizer", "--metrics", "metrics/tokenizer.json"],
    "encode_memmap": [
        "--raw",
        "raw",
        "--tokenizer",
        "tokenizer",
        "--tokens",
        "tokens",
        "--metrics",
        "metrics/tokens.json",
    ],
}
SPLITS = ("train", "val")


def prepare(folder: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the three stages in this process."""
    folder.mkdir()
    yaml = YAML()
    params = yaml.load(PROJECT / "params.yaml")
    params["data"].update(data)
    params["tokenizer"]["vocab_size"] = 400
    yaml.dump(params, folder / "params.yaml")
    monkeypatch.chdir(folder)
    for stage, flags in FLAGS.items():
        timing = [] if stage == "download" else ["--timing", "timing"]
        command = [str(PROJECT / f"stages/{stage}.py"), *flags, "--unfinished", f"unfinished/{stage}", *timing]
        monkeypatch.setattr(sys, "argv", command)
        with contextlib.redirect_stderr(io.StringIO()):
            runpy.run_path(command[0], run_name="__main__")
    assert not list((folder / "unfinished").iterdir())
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def without_shards(folder: Path) -> dict[str, Any]:
    """The manifest without what depends on the number of files."""
    found = manifest(folder)
    for split in found["splits"].values():
        del split["shards"]
    return found


def assert_equal_but_for_shards(parts: Path, whole: Path, num_shards: dict[str, int]) -> None:
    for folder, suffix in (("raw", ".txt"), ("tokens", ".bin")):
        for split, count in num_shards.items():
            names = shards.shard_names(split, count, suffix)
            found = [path.name for path in (parts / folder).glob(f"{split}*{suffix}")]
            assert sorted(found) == names
            data = b"".join((parts / folder / name).read_bytes() for name in names)
            assert data == (whole / folder / f"{split}{suffix}").read_bytes()
        assert without_shards(parts / folder) == without_shards(whole / folder)
    for folder in ("tokenizer", "metrics"):
        assert contents(parts / folder) == contents(whole / folder)
    for split in SPLITS:
        tokens, expected = (open_tokens(folder / "tokens", split, None)[0] for folder in (parts, whole))
        assert tokens[:].tolist() == expected[:].tolist()


def test_stories_in_shards_are_those_in_a_single_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"source": "stories", "train_bytes": 60_000, "val_bytes": 6_000}
    whole = prepare(tmp_path / "whole", data, monkeypatch)
    monkeypatch.setattr(shards, "SHARD_BYTES", 10_000)
    parts = prepare(tmp_path / "parts", data, monkeypatch)
    # A shard ends with the story that reaches 10,000 bytes, so that six of them hold more than 60,000.
    assert_equal_but_for_shards(parts, whole, {"train": 6, "val": 1})
    for entry in manifest(parts / "raw")["splits"]["train"]["shards"][:-1]:
        assert 10_000 <= entry["bytes"] < 15_000


def test_files_in_shards_are_those_in_a_single_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [story.text for story in itertools.islice(stories(1), 60)]
    for number in range(4):
        text = END_OF_TEXT.join(texts[number * 15 : number * 15 + 15])
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    data = {"source": "files", "train_files": [f"{tmp_path}/*.txt"], "val_fraction": 0.2}
    data |= {"train_bytes": 0, "val_bytes": 0}
    whole = prepare(tmp_path / "whole", data, monkeypatch)
    monkeypatch.setattr(shards, "SHARD_BYTES", 3_000)
    monkeypatch.setattr("lm.corpus.sources.SHARD_BYTES", 1)  # each file is a piece of its own
    parts = prepare(tmp_path / "parts", data, monkeypatch)
    num_shards = {split: len(manifest(parts / "raw")["splits"][split]["shards"]) for split in SPLITS}
    assert num_shards["train"] > num_shards["val"] > 1
    assert_equal_but_for_shards(parts, whole, num_shards)
    found = [text for split in SPLITS for path in (parts / "raw").glob(f"{split}*.txt") for text in documents(path)]
    assert sorted(found) == sorted(texts)


def documents(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split(END_OF_TEXT)[:-1]
