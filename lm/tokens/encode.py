"""Encoding the text of a split into token files, shard by shard, on several workers if there is a cluster."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lm import progress
from lm.atomic import atomic_write, make_folder, translate_write_errors
from lm.cluster import SharedPath, flat_map, share
from lm.corpus.config import END_OF_TEXT
from lm.errors import UserError
from lm.progress import ProgressRecord
from lm.shards import shard_names
from lm.tokenizer.tokenizer import Tokenizer
from lm.tokens.manifest import SplitManifest, TextFacts, TokenShard, sampled_sha256, text_paths

_BLOCK_TOKENS = 1 << 22


@dataclass(frozen=True)
class TextPiece:
    """The text file of a shard, and how to encode it. If `num_threads` is None, each core runs one thread."""

    text: SharedPath
    tokenizer: Tokenizer
    num_threads: int | None


@dataclass(frozen=True)
class ShardEnd:
    """The last result of encoding a shard: how often each id occurs (V,), and facts about its tokens."""

    occurrences: np.ndarray
    sha256: str
    ends_with_marker: bool


# A tokenizer remembers the pre-tokens that it has encoded, so a worker keeps it for the next piece.
_tokenizers: dict[str, Tokenizer] = {}


def encode_piece(piece: TextPiece) -> Iterator[np.ndarray | ShardEnd]:
    """Yield the tokens of a shard in blocks, and `ShardEnd`.

    Raises:
        UserError: The text cannot be read or is not UTF-8.
    """
    tokenizer = _tokenizers.setdefault(piece.tokenizer.hash, piece.tokenizer)
    occurrences = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    digest = hashlib.sha256()
    last = -1
    block: list[np.ndarray] = []
    length = 0
    with piece.text.local_file() as path:
        for ids in tokenizer.encode_file(path, piece.num_threads):
            occurrences += np.bincount(ids, minlength=tokenizer.vocab_size)
            digest.update(ids.data)
            last = ids[-1]
            block.append(ids)
            length += len(ids)
            if length >= _BLOCK_TOKENS:
                yield np.concatenate(block)
                block, length = [], 0
    if block:
        yield np.concatenate(block)
    yield ShardEnd(occurrences, digest.hexdigest(), bool(last == tokenizer.end_of_text_id))


def encode_split(
    raw: Path, split: str, facts: TextFacts, tokenizer: Tokenizer, unfinished: Path, cluster: str
) -> tuple[SplitManifest, np.ndarray]:
    """Encode the text files of a split, each to a token file in the folder `unfinished`/`split`.

    Args:
        raw: The folder of the text.
        split: `train` or `val`.
        facts: What its manifest records about the split.
        tokenizer: The tokenizer.
        unfinished: The folder for token files until all splits are complete. Those that an interrupted call for the
            same text and tokenizer has left there are kept; anything else is deleted.
        cluster: Where the text is encoded, as in `flat_map`.

    Returns:
        The split's entry for the manifest of the token files, and how often each id occurs.

    Raises:
        UserError: A text file cannot be read, is not UTF-8, or does not have as many documents as `facts` says, or a
            token file cannot be written.
    """
    shard_texts = text_paths(raw, split, facts)
    names = shard_names(split, len(shard_texts), ".bin")
    folder = unfinished / split
    encoded = _Progress(folder, facts, tokenizer)
    left = shard_texts[len(encoded.shards) :]
    where = cluster if len(left) > 1 else "none"
    pieces = [TextPiece(share(path, where), tokenizer, None if where == "none" else 1) for path in left]
    bar = tqdm(
        desc=f"encoding {split}",
        total=len(shard_texts),
        initial=len(encoded.shards),
        unit="shard",
        disable=True if where == "none" else None,  # without a cluster, reading a file shows a bar of its own
    )
    with bar, closing(flat_map(encode_piece, pieces, where)) as results:
        for index in range(len(encoded.shards), len(shard_texts)):
            documents = facts["shards"][index]["documents"]
            encoded.add(*_write_shard(results, shard_texts[index], documents, tokenizer, folder / names[index]))
            bar.update()
    encoded.save()
    entry: SplitManifest = {
        "bytes": facts["bytes"],
        "documents": facts["documents"],
        "count": sum(shard["count"] for shard in encoded.shards),
        "shards": encoded.shards,
    }
    if "entropy_bits" in facts:
        entry["entropy_bits"] = facts["entropy_bits"]
    return entry, encoded.occurrences


def move_shards(unfinished: Path, folder: Path) -> None:
    """Move the token files that `encode_split` has written for all splits to their folder."""
    with translate_write_errors(folder):
        for path in unfinished.glob(f"*/{progress.NAME}"):
            path.unlink()  # it must not name files that have been moved
        for path in sorted(unfinished.glob("*/*.bin")):
            shutil.move(path, folder / path.name)
        shutil.rmtree(unfinished)


def _write_shard(
    results: Iterator[np.ndarray | ShardEnd], text: Path, documents: int, tokenizer: Tokenizer, path: Path
) -> tuple[TokenShard, np.ndarray]:
    """Write the results of a shard to `path`, either completely or not at all."""
    with atomic_write(path) as file:
        while not isinstance(result := next(results), ShardEnd):
            file.write(result.data)
        found = int(result.occurrences[tokenizer.end_of_text_id])
        if found != documents or not result.ends_with_marker:
            raise UserError(
                f"{text}: expected {documents:,} documents, each followed by {END_OF_TEXT}, got {found:,} such tokens"
                f"{'' if result.ends_with_marker else ' and none at the end'}; "
                "check tokenizer.special_tokens, or make the text again with: dvc repro download"
            )
    count = int(result.occurrences.sum())
    shard: TokenShard = {"count": count, "sha256": result.sha256, "sampled_sha256": sampled_sha256(path)}
    return shard, result.occurrences


class _Progress:
    """The shards of a split that have been encoded, recorded in a folder."""

    def __init__(self, folder: Path, facts: TextFacts, tokenizer: Tokenizer) -> None:
        identity = f"{tokenizer.hash} {[shard['sha256'] for shard in facts['shards']]}"
        self._record = ProgressRecord(folder, identity)
        state, arrays = self._record.read()
        self.shards: list[TokenShard] = state.get("shards", [])
        self.occurrences = arrays.get("occurrences", np.zeros(tokenizer.vocab_size, dtype=np.int64))
        if not self.shards:
            shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)

    def add(self, shard: TokenShard, occurrences: np.ndarray) -> None:
        self.shards.append(shard)
        self.occurrences += occurrences
        if self._record.is_due:
            self.save()

    def save(self) -> None:
        self._record.write({"shards": self.shards}, {"occurrences": self.occurrences})
