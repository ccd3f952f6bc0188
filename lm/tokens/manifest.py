"""The manifests of the text in data/raw and of the tokens in data/tokens.

    data/tokens/train.bin  val.bin  manifest.json

A token file is a flat little-endian array of ids. The manifest records which tokenizer encoded the text and the dtype
of the arrays; and for each split the number of documents and bytes of its text, and the shards (`lm.shards`) with their
number of tokens and checksums.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Any, NotRequired

from annotated_types import Ge, MinLen
from typing_extensions import TypedDict

from lm.atomic import write_json
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError
from lm.schema import read_json
from lm.shards import SPLITS, shard_names
from lm.tokenizer.tokenizer import Tokenizer, token_dtype

_NUM_SAMPLES = 4
_SAMPLE_BYTES = 1 << 14

_Count = Annotated[int, Ge(0)]


class TextShard(TypedDict):
    """What `data/raw/manifest.json` records about a text file: UTF-8 bytes without markers, documents, and checksum."""

    bytes: _Count
    documents: _Count
    sha256: str


class TextFacts(TypedDict):
    """What `data/raw/manifest.json` records about the text of a split.

    Attributes:
        bytes: The size of the text in UTF-8, without the end-of-text markers.
        documents: The number of documents.
        shards: The text files in their order.
        entropy_bits: -log2 of the probability of the text, if the distribution it was drawn from is known.
    """

    bytes: _Count
    documents: _Count
    shards: Annotated[list[TextShard], MinLen(1)]
    entropy_bits: NotRequired[Annotated[float, Ge(0)]]


class TextManifest(TypedDict):
    """What is needed of `data/raw/manifest.json`: the facts about the text of each split."""

    splits: dict[str, TextFacts]


class TokenShard(TypedDict):
    """What `data/tokens/manifest.json` records about a token file.

    Attributes:
        count: The number of tokens, including the end-of-text tokens.
        sha256: The checksum of the file, in hexadecimal.
        sampled_sha256: The checksum of a few blocks of it, with which every start of training checks the file. To read
            a corpus of terabytes would take an hour.
    """

    count: _Count
    sha256: str
    sampled_sha256: str


class SplitManifest(TypedDict):
    """What `data/tokens/manifest.json` records about a split: the facts about its text, and its token files.

    Attributes:
        bytes, documents, entropy_bits: As in `TextFacts`.
        count: The number of tokens in all shards.
        shards: The token files in their order.
    """

    bytes: _Count
    documents: _Count
    entropy_bits: NotRequired[Annotated[float, Ge(0)]]
    count: _Count
    shards: Annotated[list[TokenShard], MinLen(1)]


class TokensManifest(TypedDict):
    """The content of `data/tokens/manifest.json`."""

    dtype: str
    tokenizer_hash: str
    vocab_size: _Count
    splits: dict[str, SplitManifest]


def read_text_facts(raw: Path) -> dict[str, TextFacts]:
    """Return the facts about the text of each split.

    Args:
        raw: The folder that the stage download wrote.

    Raises:
        UserError: The manifest or a text is missing or damaged, a text does not have the size in the manifest, or a
            split has no documents.
    """
    manifest_path = raw / "manifest.json"
    splits = read_json(manifest_path, TextManifest, advice("download"), ignore_unknown_keys=True)["splits"]
    facts: dict[str, TextFacts] = {}
    for split in SPLITS:
        entry = find_entry(splits, split, manifest_path, "download")
        for path, shard in zip(text_paths(raw, split, entry), entry["shards"], strict=True):
            expected = shard["bytes"] + len(END_OF_TEXT) * shard["documents"]
            if (size := file_size(path, "download")) != expected:
                raise UserError(
                    f"{path}: expected {expected:,} bytes as in manifest.json, got {size:,}; {advice('download')}"
                )
        if not entry["documents"]:
            raise UserError(f"{raw / split}.txt: contains no document; give the split some text in the section data")
        facts[split] = entry
    return facts


def text_paths(raw: Path, split: str, facts: TextFacts) -> list[Path]:
    """Return the text files of a split, in their order."""
    return [raw / name for name in shard_names(split, len(facts["shards"]), ".txt")]


def read_manifest(folder: Path) -> TokensManifest:
    """Return the manifest of the token files in `folder`."""
    return read_json(folder / "manifest.json", TokensManifest, advice("encode_memmap"))


def write_manifest(folder: Path, tokenizer: Tokenizer, splits: dict[str, SplitManifest]) -> None:
    """Write the manifest. Call this last, since the token files can be opened only with a manifest."""
    manifest: TokensManifest = {
        "dtype": token_dtype(tokenizer.vocab_size).name,
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "splits": splits,
    }
    write_json(folder / "manifest.json", {**manifest})


def sampled_sha256(path: Path) -> str:
    """Return the checksum of the first, the last and two more blocks of a file; of the whole file if it is small.

    Raises:
        UserError: The file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            distance = max(0, path.stat().st_size - _SAMPLE_BYTES) / (_NUM_SAMPLES - 1)
            for index in range(_NUM_SAMPLES):
                file.seek(round(index * distance))
                digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def find_entry(splits: dict[str, Any], split: str, path: Path, stage: str) -> Any:
    """Return the entry of a split in the manifest at `path`, which `stage` writes."""
    if split not in splits:
        raise UserError(f"{path}: no entry for the split {split!r}; {advice(stage)}")
    return splits[split]


def file_size(path: Path, stage: str) -> int:
    """Return the size of a file that `stage` writes."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {advice(stage)}") from error


def advice(stage: str) -> str:
    """Say how to make a file that `stage` writes."""
    return f"make it with: dvc repro {stage}"
