"""The token file: the ids of a split as one flat little-endian array, described by a manifest beside it.

    data/tokens/train.bin  val.bin  manifest.json

The manifest says which tokenizer made the arrays, their dtype, and of each split how many tokens, documents and bytes
of text it holds and its checksum. `encode_split` and `write_manifest` make them, `join_tokens` makes one folder of
several, and `open_tokens` checks all of it. All work in constant memory, whatever the size of the files.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from tqdm import tqdm

from lm.atomic import atomic_write, make_folder, write_json
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError
from lm.tokenizer.tokenizer import Tokenizer, token_dtype

SPLITS = ("train", "val")

_BLOCK = 1 << 16  # bytes
_ORIGIN = ("tokenizer_hash", "vocab_size", "dtype")  # what the manifests of joined folders have in common


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
    path, dtype, entry = _find_tokens(folder, split, tokenizer_hash)
    if _sha256(path) != entry.get("sha256"):
        raise _changed(path)
    # Mode "r": in a hard-linked DVC cache, writing here would change the cache.
    return np.memmap(path, dtype=dtype, mode="r"), entry


def join_tokens(folders: list[Path], out: Path) -> dict[str, Any]:
    """Join token folders, such as those of several machines, into one: split by split, in the order given.

    Each document ends with its end-of-text token, so the result is that of encoding the joined text at once. Each file
    is read twice: all are checked before anything is written.

    Args:
        folders: what the stage encode_memmap made with one tokenizer, each of another share of the corpus.
        out: a folder without a manifest; made if it is not there.

    Returns:
        The manifest of `out`; it knows the entropy of a split where all folders do.

    Raises:
        UserError: there are no folders, two of them hold the same tokens or are of different tokenizers, one is
            damaged as `open_tokens` says, or `out` holds tokens already or cannot be written.

    >>> join_tokens([Path("a"), Path("b")], Path("joined"))["splits"]["train"]  # of 3 documents and of 1
    {'bytes': 24, 'documents': 4, 'count': 18, 'sha256': '...'}
    """
    if not folders:
        raise UserError("no folders of token files to join; name at least one")
    if (out / "manifest.json").exists():
        raise UserError(f"{out}: holds token files already; name another folder for the joined ones, or delete it")
    origin = _common_origin(folders)
    parts = {split: [_find_tokens(folder, split, None) for folder in folders] for split in SPLITS}
    _require_different(folders, [entry for _, _, entry in parts["train"]])
    size = sum(dtype.itemsize * entry["count"] for split in SPLITS for _, dtype, entry in parts[split])
    with tqdm(desc="checking", total=size, unit="B", unit_scale=True, delay=1) as bar:
        for path, _, entry in parts["train"] + parts["val"]:
            if _sha256(path, bar) != entry.get("sha256"):
                raise _changed(path)
    make_folder(out)
    with tqdm(desc="joining", total=size, unit="B", unit_scale=True, delay=1) as bar:
        splits = {split: _join_split(parts[split], out / f"{split}.bin", bar) for split in SPLITS}
    manifest = {**origin, "splits": splits}
    write_json(out / "manifest.json", manifest)
    return manifest


def _require_different(folders: list[Path], entries: list[SplitManifest]) -> None:
    """Refuse a folder that is named twice, and a copy of one: its text would count twice in the training."""
    seen: dict[str, Path] = {}
    for folder, entry in zip(folders, entries, strict=True):
        checksum = entry.get("sha256", str(folder))
        if checksum in seen:
            raise UserError(f"{folder}: the same train tokens as in {seen[checksum]}; name each share once")
        seen[checksum] = folder


def _common_origin(folders: list[Path]) -> dict[str, Any]:
    """What the manifests say of the tokenizer, if it is the same in all."""
    origins = []
    for folder in folders:
        manifest = _read_json(folder / "manifest.json", "encode_memmap")
        origins.append({name: manifest.get(name) for name in _ORIGIN})
    for folder, origin in zip(folders, origins, strict=True):
        for name in _ORIGIN:
            if origin[name] != origins[0][name]:
                raise UserError(
                    f"{folder}: its {name} is {origin[name]}, but that of {folders[0]} is {origins[0][name]}; "
                    "encode all with one copy of data/tokenizer"
                )
    return origins[0]


def _join_split(parts: list[tuple[Path, np.dtype, SplitManifest]], path: Path, bar: "tqdm[Any]") -> SplitManifest:
    digest = hashlib.sha256()
    with atomic_write(path) as file:
        for part, _, _ in parts:
            for block in _blocks(part, bar):
                digest.update(block)
                file.write(block)
    entries = [entry for _, _, entry in parts]
    joined: SplitManifest = {
        "bytes": sum(entry["bytes"] for entry in entries),
        "documents": sum(entry["documents"] for entry in entries),
        "count": sum(entry["count"] for entry in entries),
        "sha256": digest.hexdigest(),
    }
    if all("entropy_bits" in entry for entry in entries):
        joined["entropy_bits"] = math.fsum(entry["entropy_bits"] for entry in entries)
    return joined


def _find_tokens(folder: Path, split: str, tokenizer_hash: str | None) -> tuple[Path, np.dtype, SplitManifest]:
    """The token file of a split, all of it checked but its checksum, which takes a while for a large one."""
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
    return path, dtype, entry


def _changed(path: Path) -> UserError:
    return UserError(
        f"{path}: changed since it was made (its sha256 is not the manifest's); "
        "make it again with: dvc repro encode_memmap"
    )


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


def _sha256(path: Path, bar: "tqdm[Any] | None" = None) -> str:
    digest = hashlib.sha256()
    for block in _blocks(path, bar):
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path, bar: "tqdm[Any] | None") -> Iterator[bytes]:
    """The bytes of a file, counted on the bar."""
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block
                if bar is not None:
                    bar.update(len(block))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
