"""Download files into a cache folder, resume interrupted downloads, and verify what was downloaded.

The cache folder holds up to three files per URL, where NAME is derived from the URL:

    NAME.part    the bytes received so far; the next process resumes after them (RFC 9110, section 14: range requests)
    NAME.json    what is known about the file: its URL, size, and checksum or validator; once complete, its sha256
    NAME         the complete file, renamed from NAME.part after its size and checksum have been verified

Later runs use the cached file without any request, provided that its sha256 still matches the record. To download a
file again, delete the cache folder.
"""

import dataclasses
import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import requests
import urllib3
from filelock import FileLock, Timeout
from tqdm import tqdm

from lm.atomic import atomic_write, make_folder, translate_write_errors
from lm.errors import UserError

CHUNK_BYTES = 1 << 16
CONNECT_SECONDS = 10.0
STALL_SECONDS = 30.0  # a connection that receives nothing for this long is considered lost
RETRY_SECONDS = (0.5, 1.0, 2.0)  # waits between consecutive attempts that receive no new bytes


@dataclass(frozen=True, kw_only=True)
class Download:
    """A complete, verified file in the cache."""

    path: Path
    url: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _Record:
    """The content of NAME.json.

    `digest` is the checksum that the hub reports. Other servers only have a `validator`, an ETag or Last-Modified date,
    which tells whether a file has changed. `sha256` is set once the file is complete.
    """

    url: str
    size: int | None = None
    digest: str | None = None
    validator: str | None = None
    sha256: str | None = None


class _Interrupted(Exception):
    """The transfer was interrupted; another request may succeed."""


@contextmanager
def lock_cache(cache: Path) -> Iterator[None]:
    """Lock the cache folder, which is created if needed, so that no other process downloads into it.

    Raises:
        UserError: If another process holds the lock, or the folder is not writable.
    """
    make_folder(cache)
    lock = FileLock(cache / "lock", blocking=False)
    with translate_write_errors(cache):
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(f"{cache}: another download is running in this folder; wait for it to finish") from error
    try:
        yield
    finally:
        lock.release()


def find_cached(url: str, cache: Path) -> Download | None:
    """Return the file that an earlier `download` left in the cache, or None.

    A file that has changed since its download is deleted.
    """
    path = _path(url, cache)
    record = _read_record(path)
    if record is None or record.sha256 is None or not path.is_file():
        return None
    if checksum(path, hashlib.sha256()) != record.sha256:
        print(f"{path}: has changed since its download; downloading it again", file=sys.stderr)
        path.unlink()
        return None
    return Download(path=path, url=url, size=path.stat().st_size, sha256=record.sha256)


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
        cache: The cache folder, which exists and is locked by this process (`lock_cache`).
        size: The size of the file in bytes, if known. By default, the size that the server reports.
        digest: The hexadecimal sha256 of the file, or the sha1 of its git blob (b"blob SIZE\\0" and the content).
            Without a digest, the download is resumed only if the ETag or Last-Modified date has not changed.
        headers: Headers to send with every request. On a redirect to another host, requests drops Authorization.

    Raises:
        UserError: If the server cannot be reached or refuses the request, the connection is lost repeatedly, the size
            or digest is wrong, or the disk is full. The bytes received are kept unless they are wrong.
    """
    path = _path(url, cache)
    part = _part_path(path)
    if digest:
        record = _Record(url=url, size=size, digest=digest)
    else:
        record = _read_record(path) or _Record(url=url)
        if record.validator is None:
            part.unlink(missing_ok=True)

    with tqdm(desc=file_name(url), total=record.size, unit="B", unit_scale=True, disable=None) as bar:
        record = _transfer(record, path, headers or {}, bar)

    received = part.stat().st_size
    if received == 0:
        part.unlink()
        raise UserError(f"{url}: the file is empty; choose another one")
    if record.size is not None and received != record.size:
        part.unlink()
        raise UserError(
            f"{url}: expected {record.size:,} bytes, got {received:,}; the download was deleted, "
            "run again to start over"
        )
    sha256 = checksum(part, hashlib.sha256())
    if digest:
        git_blob = hashlib.sha1(b"blob %d\0" % received, usedforsecurity=False)
        got = sha256 if len(digest) == 64 else checksum(part, git_blob)
        if got != digest:
            part.unlink()
            raise UserError(
                f"{url}: expected checksum {digest}, got {got}; the damaged download was deleted, "
                "run again to start over"
            )
    _write_record(path, dataclasses.replace(record, sha256=sha256))
    with translate_write_errors(path):
        part.replace(path)
    return Download(path=path, url=url, size=received, sha256=sha256)


def file_name(url: str) -> str:
    """Return the last segment of a URL as a portable file name, for example a_b.txt for http://host/a%20b.txt?x=1.

    Characters that some file systems do not allow become `_`.
    """
    path = re.split(r"[?#]", url)[0]
    return re.sub(r"[^A-Za-z0-9._-]", "_", unquote(path).rpartition("/")[2])[-80:]


def unreachable_error(url: str, error: BaseException) -> UserError:
    """Return the UserError for a request that received no response."""
    while error.__context__ is not None:  # the first error of the chain gives the cause in the fewest words
        error = error.__context__
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(
        f"{url}: cannot be reached ({reason}); check the network and the URL, or set data.source to files "
        "(local text) or stories (no network needed)"
    )


def _transfer(record: _Record, path: Path, headers: Mapping[str, str], bar: "tqdm[Any]") -> _Record:
    """Download into PATH.part until the body is complete, and return the record, updated from the response."""
    part = _part_path(path)
    furthest, failures, answered = 0, 0, False
    while True:
        offset = part.stat().st_size if part.exists() else 0
        if record.size is not None:
            if part.exists() and offset >= record.size:
                return record
            _check_disk(path, record.size - offset)
        if offset > furthest:
            furthest, failures = offset, 0
        try:
            with _request(record, offset, headers) as response:
                answered = True
                _check_status(record.url, offset, part, response)
                if response.status_code == 200:
                    offset = 0
                    if record.digest is None:
                        record = _record_from_headers(record.url, response)
                        _write_record(path, record)
                bar.total, bar.initial, bar.n = record.size, offset, offset
                # Only writing can raise an OSError here: urllib3 converts network errors into its own exceptions.
                with translate_write_errors(part), part.open("ab" if offset else "wb") as file:
                    for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
                        file.write(chunk)
                        bar.update(len(chunk))
            return record
        except (requests.RequestException, urllib3.exceptions.HTTPError, _Interrupted) as error:
            if not answered:
                raise unreachable_error(record.url, error) from error
            if failures == len(RETRY_SECONDS):
                reason = str(error) if isinstance(error, _Interrupted) else "the connection was lost"
                raise UserError(
                    f"{record.url}: {reason}, {failures + 1} times in a row at byte {furthest:,}; "
                    "the bytes received so far are kept, run again later to resume"
                ) from error
            time.sleep(RETRY_SECONDS[failures])
            failures += 1


def _request(record: _Record, offset: int, headers: Mapping[str, str]) -> requests.Response:
    """Request the file, starting at byte `offset`."""
    # No compression, because sizes and ranges must count the bytes of the file itself.
    request_headers = {**headers, "Accept-Encoding": "identity"}
    if offset:
        request_headers["Range"] = f"bytes={offset}-"
        if record.validator:
            # If the file has changed, the server sends all of it, with status 200.
            request_headers["If-Range"] = record.validator
    return requests.get(record.url, headers=request_headers, stream=True, timeout=(CONNECT_SECONDS, STALL_SECONDS))


def _check_status(url: str, offset: int, part: Path, response: requests.Response) -> None:
    status = response.status_code
    if status == 200 or (status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")):
        return
    if status in (206, 416):
        part.unlink(missing_ok=True)  # the next request starts over
        raise _Interrupted(f"the server did not send the range from byte {offset:,} on")
    if status == 429 or status >= 500:
        raise _Interrupted(f"the server answered {status} {response.reason}")
    if status in (401, 403):
        raise UserError(f"{url}: access denied ({status} {response.reason}); the URL requires a login or permission")
    if status in (404, 410):
        raise UserError(f"{url}: no such file ({status} {response.reason}); check the URL")
    raise UserError(f"{url}: the server answered {status} {response.reason}; check the URL")


def _record_from_headers(url: str, response: requests.Response) -> _Record:
    length = response.headers.get("Content-Length", "")
    tag = response.headers.get("ETag", "")
    return _Record(
        url=url,
        size=int(length) if length.isdecimal() else None,
        # A weak ETag does not guarantee equal bytes (RFC 9110, section 13.1.5).
        validator=tag if tag.startswith('"') else response.headers.get("Last-Modified"),
    )


def _check_disk(path: Path, missing: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if missing > free:
        raise UserError(
            f"{path.parent}: not enough disk space: {missing:,} more bytes are needed and {free:,} are free; "
            "free some space and run again"
        )


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


def _read_record(path: Path) -> _Record | None:
    """Return the record of a file, or None if there is none or it is damaged."""
    try:
        return _Record(**json.loads(_record_path(path).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write_record(path: Path, record: _Record) -> None:
    with atomic_write(_record_path(path)) as file:
        file.write(json.dumps(dataclasses.asdict(record), indent=2).encode() + b"\n")
