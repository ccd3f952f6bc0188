"""Token files: the token ids of a split as one flat little-endian array, described by a manifest beside it.

    data/tokens/train.bin  val.bin  manifest.json

The manifest records which tokenizer encoded the text and the dtype of the arrays; and for each split the number of
tokens, the number of documents and bytes of its text, and a checksum. `encode_split` and `write_manifest` write the
files, `join_tokens` joins several folders into one, and `open_tokens` checks and opens a split. All of them work in
constant memory.
"""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
from annotated_types import Ge
from tqdm import tqdm
from typing_extensions import TypedDict

from lm.atomic import atomic_write, make_folder, require_new_folder, write_json
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError
from lm.schema import read_json
from lm.tokenizer.tokenizer import Tokenizer, token_dtype

SPLITS = ("train", "val")

_BLOCK_BYTES = 1 << 16

_Count = Annotated[int, Ge(0)]


class TextFacts(TypedDict):
    """What `data/raw/manifest.json` records about the text of a split.

    Attributes:
        bytes: The size of the text in UTF-8, without the end-of-text markers.
        documents: The number of documents.
        entropy_bits: -log2 of the probability of the text, if the distribution it was drawn from is known.
    """

    bytes: _Count
    documents: _Count
    entropy_bits: NotRequired[Annotated[float, Ge(0)]]


class SplitManifest(TextFacts):
    """What `data/tokens/manifest.json` records about a split: the facts about its text, and those about its token file.

    Attributes:
        count: The number of tokens, including the end-of-text tokens.
        sha256: The checksum of the token file, in hexadecimal.
    """

    count: _Count
    sha256: str


class TokensOrigin(TypedDict):
    """How token files were encoded. It must be the same in the manifests of folders that are joined."""

    dtype: str
    tokenizer_hash: str
    vocab_size: _Count


class TokensManifest(TokensOrigin):
    """The content of `data/tokens/manifest.json`."""

    splits: dict[str, SplitManifest]


class TextManifest(TypedDict):
    """What is needed of `data/raw/manifest.json`: the facts about the text of each split."""

    splits: dict[str, TextFacts]


def read_text_facts(raw: Path) -> dict[str, TextFacts]:
    """Return the facts about the text of each split.

    Args:
        raw: The folder that the stage download wrote.

    Raises:
        UserError: The manifest or a text is missing or damaged, a text does not have the size in the manifest, or a
            split has no documents.
    """
    manifest_path = raw / "manifest.json"
    splits = read_json(manifest_path, TextManifest, _advice("download"), ignore_unknown_keys=True)["splits"]
    facts: dict[str, TextFacts] = {}
    for split in SPLITS:
        path = raw / f"{split}.txt"
        entry = _entry(splits, split, manifest_path, "download")
        expected = entry["bytes"] + len(END_OF_TEXT) * entry["documents"]
        if (size := _size(path, "download")) != expected:
            raise UserError(
                f"{path}: expected {expected:,} bytes as in manifest.json, got {size:,}; {_advice('download')}"
            )
        if not entry["documents"]:
            raise UserError(f"{path}: contains no document; give the split some text in the section data")
        facts[split] = entry
    return facts


def encode_split(
    text_path: Path, facts: TextFacts, tokenizer: Tokenizer, path: Path
) -> tuple[SplitManifest, np.ndarray]:
    """Encode a text file and write the token ids to `path`, either completely or not at all.

    Args:
        text_path: The text of a split.
        facts: What its manifest records about it.
        tokenizer: The tokenizer.
        path: The token file to write, in an existing folder.

    Returns:
        The split's entry for the manifest of the token files, and how often each id occurs.

    Raises:
        UserError: The text cannot be read, is not UTF-8, or does not have as many documents as `facts` says, or the
            token file cannot be written.
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
        ends_with_marker = last == tokenizer.end_of_text_id
        if documents != facts["documents"] or not ends_with_marker:
            raise UserError(
                f"{text_path}: expected {facts['documents']:,} documents, each followed by {END_OF_TEXT}, got "
                f"{documents:,} such tokens{'' if ends_with_marker else ' and none at the end'}; "
                "check tokenizer.special_tokens, or make the text again with: dvc repro download"
            )
    return {**facts, "count": int(occurrences.sum()), "sha256": digest.hexdigest()}, occurrences


def write_manifest(folder: Path, tokenizer: Tokenizer, splits: dict[str, SplitManifest]) -> None:
    """Write the manifest. Call this last, since the token files can be opened only with a manifest."""
    manifest: TokensManifest = {
        "dtype": token_dtype(tokenizer.vocab_size).name,
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "splits": splits,
    }
    write_json(folder / "manifest.json", {**manifest})


def open_tokens(folder: Path, split: str, tokenizer_hash: str | None) -> tuple[np.memmap, SplitManifest]:
    """Open the token file of a split.

    Args:
        folder: The folder that the stage encode_memmap wrote, such as data/tokens.
        split: `train` or `val`.
        tokenizer_hash: The hash of the tokenizer that the caller uses, or None to accept any tokenizer.

    Returns:
        The tokens as a read-only memory map, and the split's entry in the manifest.

    Raises:
        UserError: A file is missing or truncated, was changed after it was written, has the wrong dtype, or was encoded
            by a different tokenizer.
    """
    path, dtype, entry = _find_tokens(folder, split, tokenizer_hash)
    if _sha256(path) != entry["sha256"]:
        raise _changed(path)
    # Read-only, because DVC may link this file to its cache: writing here would corrupt the cache.
    return np.memmap(path, dtype=dtype, mode="r"), entry


def join_tokens(folders: list[Path], out: Path) -> TokensManifest:
    """Join the token files of several folders, for example from several machines, split by split in the order given.

    Every document ends with an end-of-text token, so the result equals encoding the concatenated text. Every file is
    read twice: all files are checked before anything is written.

    Args:
        folders: Folders that the stage encode_memmap wrote with the same tokenizer, each for a different share of
            the corpus.
        out: The folder to write; it must be empty, or not exist yet.

    Returns:
        The manifest of `out`. It includes the entropy of a split if the manifests of all folders do.

    Raises:
        UserError: `folders` is empty, two folders contain the same train tokens or were encoded by different
            tokenizers, a folder is damaged (see `open_tokens`), or `out` is not empty or cannot be written.

    >>> join_tokens([Path("a"), Path("b")], Path("joined"))["splits"]["train"]  # 3 documents and 1 document
    {'bytes': 24, 'documents': 4, 'count': 18, 'sha256': '...'}
    """
    if not folders:
        raise UserError("no folders of token files to join; name at least one")
    if (out / "manifest.json").exists():
        raise UserError(f"{out}: contains token files already; name another folder for the joined ones, or delete it")
    require_new_folder(out)
    origin = _common_origin(folders)
    parts = {split: [_find_tokens(folder, split, None) for folder in folders] for split in SPLITS}
    _require_different(folders, [entry for _, _, entry in parts["train"]])
    size = sum(dtype.itemsize * entry["count"] for split in SPLITS for _, dtype, entry in parts[split])
    with tqdm(desc="checking", total=size, unit="B", unit_scale=True, delay=1, disable=None) as bar:
        for path, _, entry in parts["train"] + parts["val"]:
            if _sha256(path, bar) != entry["sha256"]:
                raise _changed(path)
    make_folder(out)
    with tqdm(desc="joining", total=size, unit="B", unit_scale=True, delay=1, disable=None) as bar:
        splits = {split: _join_split(parts[split], out / f"{split}.bin", bar) for split in SPLITS}
    manifest: TokensManifest = {**origin, "splits": splits}
    write_json(out / "manifest.json", {**manifest})
    return manifest


def _require_different(folders: list[Path], entries: list[SplitManifest]) -> None:
    """Reject a folder that is named twice, or a copy of another: its text would count twice in training."""
    seen: dict[str, Path] = {}
    for folder, entry in zip(folders, entries, strict=True):
        if (checksum := entry["sha256"]) in seen:
            raise UserError(f"{folder}: has the same train tokens as {seen[checksum]}; name each share once")
        seen[checksum] = folder


def _common_origin(folders: list[Path]) -> TokensOrigin:
    """Return what the manifests record about the tokenizer, after checking that it is the same in all of them."""
    origins: list[TokensOrigin] = []
    for folder in folders:
        manifest = _read_manifest(folder)
        origin: TokensOrigin = {
            "dtype": manifest["dtype"],
            "tokenizer_hash": manifest["tokenizer_hash"],
            "vocab_size": manifest["vocab_size"],
        }
        origins.append(origin)
    for folder, origin in zip(folders, origins, strict=True):
        for (name, expected), got in zip(origins[0].items(), origin.values(), strict=True):
            if got != expected:
                raise UserError(
                    f"{folder}: expected the {name} of {folders[0]}, {expected}, got {got}; "
                    "encode all shares with the same copy of data/tokenizer"
                )
    return origins[0]


def _join_split(parts: list[tuple[Path, np.dtype, SplitManifest]], path: Path, bar: "tqdm[Any]") -> SplitManifest:
    """Write the concatenation of token files to `path` and return its entry for the manifest."""
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
    """Find the token file of a split and check everything except its checksum, which takes a while for a large file."""
    manifest = _read_manifest(folder)
    entry = _entry(manifest["splits"], split, folder / "manifest.json", "encode_memmap")
    again = _advice("encode_memmap")
    if tokenizer_hash is not None and manifest["tokenizer_hash"] != tokenizer_hash:
        raise UserError(f"{folder}: the tokens were encoded by a different tokenizer; {again}")
    dtype = token_dtype(manifest["vocab_size"])
    if manifest["dtype"] != dtype.name:
        raise UserError(
            f"{folder / 'manifest.json'}: expected dtype {dtype.name} for a vocabulary of "
            f"{manifest['vocab_size']:,}, got {manifest['dtype']}; {again}"
        )
    path = folder / f"{split}.bin"
    expected = entry["count"] * dtype.itemsize
    if (size := _size(path, "encode_memmap")) != expected:
        raise UserError(
            f"{path}: expected {expected:,} bytes for {entry['count']:,} tokens of {dtype.name}, got {size:,}; {again}"
        )
    if not size or not entry["bytes"]:
        raise UserError(f"{path}: contains no text; give the split some in the section data")
    return path, dtype, entry


def _changed(path: Path) -> UserError:
    return UserError(
        f"{path}: changed since it was written (its sha256 is not the one in the manifest); {_advice('encode_memmap')}"
    )


def _read_manifest(folder: Path) -> TokensManifest:
    return read_json(folder / "manifest.json", TokensManifest, _advice("encode_memmap"))


def _entry(splits: dict[str, Any], split: str, path: Path, stage: str) -> Any:
    if split not in splits:
        raise UserError(f"{path}: no entry for the split {split!r}; {_advice(stage)}")
    return splits[split]


def _advice(stage: str) -> str:
    return f"make it with: dvc repro {stage}"


def _size(path: Path, stage: str) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_advice(stage)}") from error


def _sha256(path: Path, bar: "tqdm[Any] | None" = None) -> str:
    digest = hashlib.sha256()
    for block in _blocks(path, bar):
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path, bar: "tqdm[Any] | None") -> Iterator[bytes]:
    """Yield the bytes of a file in blocks, and advance the bar."""
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
                if bar is not None:
                    bar.update(len(block))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
