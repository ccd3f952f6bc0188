"""Download files into a cache folder, resume interrupted downloads, and verify what was downloaded.

The cache folder holds up to three files per URL, where NAME is derived from the URL:

    NAME.part    the bytes received so far; the next process resumes after them
    NAME.json    what is known about the file: its URL, size, and checksum or version; once complete, its sha256
    NAME         the complete file, renamed from NAME.part after its size and checksum have been verified

Later runs use the cached file without any request, provided that its sha256 still matches the record. To download a
file again, delete the cache folder.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lm.atomic import translate_write_errors, write_json
from lm.corpus.transfer import Record, transfer
from lm.corpus.urls import file_name, redact
from lm.errors import UserError
from lm.schema import read_bytes, validate


@dataclass(frozen=True, kw_only=True)
class Download:
    """A complete, verified file in the cache."""

    path: Path
    size: int
    sha256: str


def find_cached(url: str, cache: Path) -> Download | None:
    """Return the file that an earlier `download` left in the cache, or None.

    A file that has changed since its download is deleted.
    """
    path = _path(url, cache)
    record = _read_record(path)
    if record is None or record.sha256 is None or not path.is_file():
        return None
    try:
        sha256 = checksum(path, hashlib.sha256())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); delete it to download it again") from error
    if sha256 != record.sha256:
        print(f"{path}: has changed since its download; downloading it again", file=sys.stderr)
        path.unlink()
        return None
    return Download(path=path, size=path.stat().st_size, sha256=sha256)


def download(
    url: str,
    cache: Path,
    *,
    size: int | None = None,
    digest: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Download:
    """Download a file, resuming where an earlier process stopped.

    Args:
        url: The http(s) URL of the file.
        cache: The cache folder, which exists and which no other run uses (`lm.progress.lock_folder`).
        size: The size of the file in bytes, if known. By default, the size that the server reports.
        digest: The hexadecimal sha256 of the file, or the sha1 of its git blob (b"blob SIZE\\0" and the content).
        headers: Headers to send with every request. On a redirect to another host, requests drops Authorization.

    Raises:
        UserError: If the server cannot be reached, refuses the request or answers with an HTML page, the connection is
            lost repeatedly, the size or digest is wrong, or the disk is full. The bytes received are kept unless they
            are wrong.
    """
    path, shown = _path(url, cache), redact(url)
    part = _part_path(path)
    known = Record(url=shown, size=size, digest=digest)
    record = known if digest else _read_record(path) or known

    with (
        translate_write_errors(path),
        tqdm(desc=file_name(url), total=record.size, unit="B", unit_scale=True, disable=None) as bar,
    ):
        record = transfer(url, record, part, headers or {}, bar, lambda record: _write_record(path, record))

    received = part.stat().st_size
    if received == 0:
        part.unlink()
        raise UserError(f"{shown}: the file is empty; choose another one")
    if record.size is not None and received != record.size:
        part.unlink()
        raise UserError(
            f"{shown}: expected {record.size:,} bytes, got {received:,}; the download was deleted, "
            "run again to start over"
        )
    sha256 = checksum(part, hashlib.sha256())
    if digest:
        git_blob = hashlib.sha1(b"blob %d\0" % received, usedforsecurity=False)
        got = sha256 if len(digest) == 64 else checksum(part, git_blob)
        if got != digest:
            part.unlink()
            raise UserError(
                f"{shown}: expected checksum {digest}, got {got}; the damaged download was deleted, "
                "run again to start over"
            )
    _write_record(path, dataclasses.replace(record, sha256=sha256))
    with translate_write_errors(path):
        part.replace(path)
    return Download(path=path, size=received, sha256=sha256)


def checksum(path: Path, hasher: "hashlib._Hash") -> str:
    """Update `hasher` with the content of a file and return its hexadecimal digest."""
    with (
        path.open("rb") as file,
        tqdm(
            desc=f"check {path.name}", total=path.stat().st_size, unit="B", unit_scale=True, delay=2, disable=None
        ) as bar,
    ):
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
            bar.update(len(chunk))
    return hasher.hexdigest()


def _path(url: str, cache: Path) -> Path:
    return cache / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{file_name(url)}"


def _part_path(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read_record(path: Path) -> Record | None:
    """Return the record of a file, or None if there is none, or it is damaged or by another version of this program."""
    record_path = _record_path(path)
    if not record_path.exists():
        return None
    try:
        return validate(Record, json.loads(read_bytes(record_path, "run again")))
    except (ValueError, RecursionError):
        return None


def _write_record(path: Path, record: Record) -> None:
    write_json(_record_path(path), dataclasses.asdict(record))
