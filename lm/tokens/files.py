"""Reading the tokens of a split from one or more memory-mapped files."""

import bisect
import itertools
from collections import OrderedDict
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np

from lm.errors import UserError
from lm.shards import shard_names
from lm.tokenizer.tokenizer import token_dtype
from lm.tokens.manifest import (
    SplitManifest,
    advice,
    file_size,
    find_entry,
    read_manifest,
    sampled_sha256,
)

_MAX_OPEN = 64  # the number of files that stay open, of perhaps thousands


class TokenFiles:
    """The tokens in memory-mapped files, as one sequence that is read in slices of consecutive tokens.

    Reading a part of a map that the file no longer has would end the process with SIGBUS, without a message. The size
    of the file is therefore checked before every slice, which takes a microsecond.

    Args:
        paths: The files in their order.
        counts: The number of tokens in each.
        dtype: The dtype of the tokens.

    Raises, on reading:
        UserError: A file is missing or has become shorter.
        ValueError: The slice has a step other than 1.
    """

    def __init__(self, paths: list[Path], counts: list[int], dtype: np.dtype) -> None:
        self.dtype = dtype
        self._paths, self._counts = paths, counts
        self._ends = list(itertools.accumulate(counts))
        self._maps: OrderedDict[int, mmap] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: slice) -> np.ndarray:
        begin, end, step = index.indices(len(self))
        if step != 1:
            raise ValueError(f"expected a slice of consecutive tokens, got a step of {step}")
        parts = []
        shard = bisect.bisect_right(self._ends, begin)
        while begin < end:
            first = self._ends[shard] - self._counts[shard]
            stop = min(end, self._ends[shard])
            parts.append(self._tokens(shard)[begin - first : stop - first])
            begin, shard = stop, shard + 1
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def _tokens(self, shard: int) -> np.ndarray:
        """The tokens of a shard. The maps of the shards that were read last stay open."""
        path, count = self._paths[shard], self._counts[shard]
        opened = self._maps.pop(shard, None)
        size = opened.size() if opened else file_size(path, "encode_memmap")
        if size < count * self.dtype.itemsize:
            raise UserError(f"{path}: has become shorter during training; make it again with: dvc repro encode_memmap")
        self._maps[shard] = opened or _map(path)
        if len(self._maps) > _MAX_OPEN:
            self._maps.popitem(last=False)
        return np.frombuffer(self._maps[shard], self.dtype, count)


def _map(path: Path) -> mmap:
    try:
        with path.open("rb") as file:
            # Read-only, because DVC may link this file to its cache: writing here would corrupt the cache.
            return mmap(file.fileno(), 0, access=ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {advice('encode_memmap')}") from error


def open_tokens(folder: Path, split: str, tokenizer_hash: str | None) -> tuple[TokenFiles, SplitManifest]:
    """Open the token files of a split.

    Args:
        folder: The folder that the stage encode_memmap wrote, such as data/tokens.
        split: `train` or `val`.
        tokenizer_hash: The hash of the tokenizer that the caller uses, or None to accept any tokenizer.

    Returns:
        The tokens, and the split's entry in the manifest.

    Raises:
        UserError: A file is missing or truncated, was changed after it was written, has the wrong dtype, or was encoded
            by a different tokenizer. Of large files, only a few blocks are checked for changes.
    """
    manifest = read_manifest(folder)
    entry: SplitManifest = find_entry(manifest["splits"], split, folder / "manifest.json", "encode_memmap")
    again = advice("encode_memmap")
    if tokenizer_hash is not None and manifest["tokenizer_hash"] != tokenizer_hash:
        raise UserError(f"{folder}: the tokens were encoded by a different tokenizer; {again}")
    dtype = token_dtype(manifest["vocab_size"])
    if manifest["dtype"] != dtype.name:
        raise UserError(
            f"{folder / 'manifest.json'}: expected dtype {dtype.name} for a vocabulary of "
            f"{manifest['vocab_size']:,}, got {manifest['dtype']}; {again}"
        )
    paths = [folder / name for name in shard_names(split, len(entry["shards"]), ".bin")]
    counts = [shard["count"] for shard in entry["shards"]]
    if sum(counts) != entry["count"]:
        raise UserError(
            f"{folder / 'manifest.json'}: expected {entry['count']:,} tokens in the shards of {split}, got "
            f"{sum(counts):,}; {again}"
        )
    if not entry["count"] or not entry["bytes"]:
        raise UserError(f"{paths[0]}: contains no text; give the split some in the section data")
    for path, shard in zip(paths, entry["shards"], strict=True):
        expected = shard["count"] * dtype.itemsize
        if (size := file_size(path, "encode_memmap")) != expected:
            raise UserError(
                f"{path}: expected {expected:,} bytes for {shard['count']:,} tokens of {dtype.name}, got {size:,}; "
                f"{again}"
            )
        if sampled_sha256(path) != shard["sampled_sha256"]:
            raise UserError(
                f"{path}: changed since it was written (its checksum is not the one in the manifest); {again}"
            )
    return TokenFiles(paths, counts, dtype), entry
