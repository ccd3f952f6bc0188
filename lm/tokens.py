"""The token file: the ids of a split as one flat little-endian array, described by a manifest beside it.

    data/tokens/train.bin  val.bin  manifest.json

The manifest says which tokenizer made the arrays, their dtype, and of each split how many tokens, documents and bytes
of text it holds and its checksum. `encode_split` and `write_manifest` make them, `open_tokens` checks all of it.
Both work in constant memory, whatever the size of the file.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from lm.atomic import atomic_write, write_json
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError
from lm.tokenizer.tokenizer import Tokenizer, token_dtype

SPLITS = ("train", "val")

_BLOCK = 1 << 16  # bytes


class TextFacts(TypedDict):
    """What `data/raw/manifest.json` knows of the text of a split; its markers do not count as bytes."""

    bytes: int
    documents: int
    entropy_bits: NotRequired[float]  # -log2 of the text's probability, where its distribution is known


class SplitManifest(TextFacts):
    """The same of its token file; `count` is the number of tokens, the end-of-text tokens among them."""

    count: int
    sha256: str


def read_text_facts(raw: Path) -> dict[str, TextFacts]:
    """The facts of each split in `raw`, the folder of the stage download, checked against the size of its file."""
    manifest_path = raw / "manifest.json"
    splits = _read_json(manifest_path, "download").get("splits")
    facts: dict[str, TextFacts] = {}
    for split in SPLITS:
        path = raw / f"{split}.txt"
        entry = _require_counts(splits, split, ("bytes", "documents"), manifest_path, "download")
        expected = entry["bytes"] + len(END_OF_TEXT) * entry["documents"]
        if (size := _size(path, "download")) != expected:
            raise UserError(
                f"{path}: holds {size:,} bytes, but manifest.json says {expected:,}; "
                "make it again with: dvc repro download"
            )
        if not entry["documents"]:
            raise UserError(f"{path}: holds no document; give the split some text in the section data")
        facts[split] = {name: entry[name] for name in ("bytes", "documents", "entropy_bits") if name in entry}
    return facts


def encode_split(
    text_path: Path, facts: TextFacts, tokenizer: Tokenizer, path: Path
) -> tuple[SplitManifest, np.ndarray]:
    """Write the ids of a text file to `path`, in an existing folder, whole or not at all.

    Returns:
        The entry of the manifest, and how often each id occurs.

    Raises:
        UserError: the text cannot be read, is not UTF-8 or holds another number of documents than `facts` say, or
            the token file cannot be written.
    """
    occurrences = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    digest = hashlib.sha256()
    last = tokenizer.end_of_text_id
    with atomic_write(path) as file:
        for batch in tokenizer.encode_file(text_path):
            occurrences += np.bincount(batch, minlength=tokenizer.vocab_size)
            digest.update(batch.data)
            file.write(batch.data)
            last = batch[-1]
        documents = int(occurrences[tokenizer.end_of_text_id])
        if documents != facts["documents"] or last != tokenizer.end_of_text_id:
            raise UserError(
                f"{text_path}: expected {facts['documents']:,} documents, each ended by {END_OF_TEXT}, got "
                f"{documents:,} such tokens{'' if last == tokenizer.end_of_text_id else ' and an open end'}; "
                "check tokenizer.special_tokens, or make the text again with: dvc repro download"
            )
    return {**facts, "count": int(occurrences.sum()), "sha256": digest.hexdigest()}, occurrences


def write_manifest(folder: Path, tokenizer: Tokenizer, splits: dict[str, SplitManifest]) -> None:
    """Write the manifest, after the token files: until then a reader refuses them."""
    manifest = {
        "dtype": token_dtype(tokenizer.vocab_size).name,
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "splits": splits,
    }
    write_json(folder / "manifest.json", manifest)


def open_tokens(folder: Path, split: str, tokenizer_hash: str | None) -> tuple[np.memmap, SplitManifest]:
    """The tokens of a split, mapped read-only from disk, and what the manifest says of them.

    Args:
        folder: what the stage encode_memmap made, such as data/tokens.
        split: `train` or `val`.
        tokenizer_hash: of the tokenizer that the reader uses; None accepts any.

    Raises:
        UserError: a file is missing, of another tokenizer, cut short, of another dtype, or changed since it was made.
    """
    manifest_path = folder / "manifest.json"
    manifest = _read_json(manifest_path, "encode_memmap")
    again = "make it again with: dvc repro encode_memmap"
    counts = ("bytes", "documents", "count")
    entry = _require_counts(manifest.get("splits"), split, counts, manifest_path, "encode_memmap")
    vocab_size = manifest.get("vocab_size")
    if type(vocab_size) is not int:
        raise UserError(f"{manifest_path}: expected a whole number under 'vocab_size', got {vocab_size!r}; {again}")
    if tokenizer_hash is not None and manifest.get("tokenizer_hash") != tokenizer_hash:
        raise UserError(f"{folder}: the tokens were made by another tokenizer; {again}")
    dtype = token_dtype(vocab_size)
    if manifest.get("dtype") != dtype.name:
        raise UserError(
            f"{manifest_path}: expected dtype {dtype.name} for a vocabulary of {vocab_size:,}, "
            f"got {manifest.get('dtype')}; {again}"
        )
    path = folder / f"{split}.bin"
    expected = entry["count"] * dtype.itemsize
    if (size := _size(path, "encode_memmap")) != expected:
        raise UserError(
            f"{path}: {entry['count']:,} tokens of {dtype.name} take {expected:,} bytes, but it holds {size:,}; {again}"
        )
    if not size:
        raise UserError(f"{path}: holds no tokens; give the split some text")
    if _sha256(path) != entry.get("sha256"):
        raise UserError(f"{path}: changed since it was made (its sha256 is not the manifest's); {again}")
    # Mode "r": in a hard-linked DVC cache, writing here would change the cache.
    return np.memmap(path, dtype=dtype, mode="r"), entry


def _require_counts(splits: Any, split: str, names: tuple[str, ...], path: Path, stage: str) -> Any:
    """The entry of a split, with its counts checked."""
    entry = splits.get(split) if isinstance(splits, dict) else None
    if not isinstance(entry, dict):
        raise UserError(f"{path}: no entry for the split {split!r}; make it again with: dvc repro {stage}")
    for name in names:
        if type(entry.get(name)) is not int or entry[name] < 0:
            raise UserError(
                f"{path}: expected a count under splits.{split}.{name}, got {entry.get(name)!r}; "
                f"make it again with: dvc repro {stage}"
            )
    return entry


def _read_json(path: Path, stage: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it with: dvc repro {stage}") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"{path}: not JSON ({error}); make it again with: dvc repro {stage}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object; make it again with: dvc repro {stage}")
    return values


def _size(path: Path, stage: str) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it with: dvc repro {stage}") from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()
