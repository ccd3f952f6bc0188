"""A tokenizer of three merges, the text of both splits, and their token files."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lm.shards import shard_names
from lm.tokenizer.encoding.vocab import build_vocab
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.encode import encode_split, move_shards
from lm.tokens.manifest import read_text_facts, write_manifest

END = "<|endoftext|>"
MERGES = [(b"t", b"h"), (b"th", b"e"), (b" ", b"the")]
TEXTS = {"train": [f"the cat{END}é the the{END}{END}"], "val": [f"a\n\n{END}"]}


def make_tokenizer(pattern: str = "gpt2") -> Tokenizer:
    return Tokenizer(build_vocab(MERGES, [END]), MERGES, [END], pattern)


def write_text(raw: Path, texts: dict[str, list[str]], **val_facts: float) -> Path:
    """Write the text files of both splits and their manifest, as the stage download does."""
    raw.mkdir(exist_ok=True)
    splits = {}
    for split, shards in texts.items():
        entries = []
        for name, text in zip(shard_names(split, len(shards), ".txt"), shards, strict=True):
            (raw / name).write_bytes(text.encode())
            size, documents = len(text.encode()), text.count(END)
            digest = hashlib.sha256(text.encode()).hexdigest()
            entries.append({"bytes": size - 13 * documents, "documents": documents, "sha256": digest})
        totals = {key: sum(entry[key] for entry in entries) for key in ("bytes", "documents")}
        splits[split] = {**totals, "shards": entries, **(val_facts if split == "val" else {})}
    (raw / "manifest.json").write_text(json.dumps({"source": "files", "splits": splits, "provenance": []}))
    return raw


def encode(raw: Path, tokenizer: Tokenizer, folder: Path) -> Path:
    """Write the token files of a text, as the stage encode_memmap does."""
    folder.mkdir()
    unfinished = folder.with_name(f"unfinished-{folder.name}")
    splits = {
        split: encode_split(raw, split, facts, tokenizer, unfinished, "none")[0]
        for split, facts in read_text_facts(raw).items()
    }
    move_shards(unfinished, folder)
    write_manifest(folder, tokenizer, splits)
    return folder


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a manifest."""
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def replacements(value: Any) -> list[Any]:
    """`value` with one part replaced, once for each part and each odd value."""
    odd = [None, True, -1, 1.5, 10**400, "", "\ud800", [], {}, [[1]], {"a\nb": 1}]
    within: list[Any] = []
    if isinstance(value, dict):
        within = [{**value, name: new} for name, old in value.items() for new in replacements(old)]
    elif isinstance(value, list):
        within = [
            [*value[:index], new, *value[index + 1 :]] for index, old in enumerate(value) for new in replacements(old)
        ]
    return odd + within


@pytest.fixture
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_text(tmp_path / "raw", TEXTS, entropy_bits=7.5)


@pytest.fixture
def folder(raw: Path, tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """The token files of TEXTS."""
    return encode(raw, tokenizer, tmp_path / "tokens")


@pytest.fixture
def sharded(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """Token files of three shards, with 8, 11 and 5 tokens."""
    train = [f"the cat{END}a{END}", f"the the cats{END}ab{END}", f"a the{END}the{END}"]
    return encode(write_text(tmp_path / "raw", {**TEXTS, "train": train}), tokenizer, tmp_path / "tokens")
