"""Download a file so that a kill loses nothing and a fault is never taken for text.

A file of the web lives in the cache folder under a name made from its address:

    NAME.part    what has arrived; the next process goes on behind its last byte (RFC 9110, section 14: range requests)
    NAME.json    what the server said of the file at the first download: size, checksum or validator
    NAME         the whole file, renamed into place after size and checksum were verified; NAME.json holds its sha256

A later run takes the cached file if it still has the recorded sha256, and then needs no network.
To download anew, delete the cache folder.
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
STALL_SECONDS = 30.0  # without a byte, before the connection counts as cut
RETRY_SECONDS = (0.5, 1.0, 2.0)  # waits after cuts in a row that brought nothing new


@dataclass(frozen=True, kw_only=True)
class Download:
    """A whole, verified file in the cache."""

    path: Path
    address: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _Record:
    """NAME.json. `digest` comes from the hub, `validator` (ETag or Last-Modified) from any other server."""

    address: str
    size: int | None = None
    digest: str | None = None
    validator: str | None = None
    sha256: str | None = None  # once the file is whole


class _Cut(Exception):
    """The transfer broke off; asking again may help."""


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Keep the cache folder to this process.

    Raises:
        UserError: another process has it, or the folder cannot be written.
    """
    make_folder(cache)
    lock = FileLock(cache / "lock", blocking=False)
    with translate_write_errors(cache):
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(f"{cache}: another download is running in this folder; wait for it to end") from error
    try:
        yield
    finally:
        lock.release()


def cached(address: str, cache: Path) -> Download | None:
    """The file of an earlier `download`, or None; a file that was altered since then is deleted."""
    path = _path(address, cache)
    record = _read_record(path)
    if record is None or record.sha256 is None or not path.is_file():
        return None
    if checksum(path, hashlib.sha256()) != record.sha256:
        print(f"{path}: was altered since its download; downloading it again", file=sys.stderr)
        path.unlink()
        return None
    return Download(path=path, address=address, size=path.stat().st_size, sha256=record.sha256)


def download(
    address: str,
    cache: Path,
    *,
    size: int | None = None,
    digest: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Download:
    """Download an http(s) address, going on from what an earlier process left of it.

    Args:
        address: where the file is.
        cache: the existing folder that keeps it, `locked` by this process.
        size: its bytes, if known; otherwise the server's own word is taken.
        digest: its sha256, or the sha1 of its git blob (of b"blob SIZE\\0" and the content), in hexadecimal digits.
            Without it the file is resumed only where ETag or Last-Modified says that it is still the same.
        headers: sent with each request; requests keeps Authorization from other hosts that it is redirected to.

    Raises:
        UserError: the address cannot be reached, refuses, breaks off again and again or sends something else than
            announced, or the disk is full. What has arrived is kept, unless it is wrong.
    """
    path = _path(address, cache)
    part = _part(path)
    if digest:
        record = _Record(address=address, size=size, digest=digest)
    else:
        record = _read_record(path) or _Record(address=address)
        if record.validator is None:
            part.unlink(missing_ok=True)

    with tqdm(desc=file_name(address), total=record.size, unit="B", unit_scale=True) as bar:
        record = _transfer(record, path, headers or {}, bar)

    arrived = part.stat().st_size
    if arrived == 0:
        part.unlink()
        raise UserError(f"{address}: the file is empty; name another one")
    if record.size is not None and arrived != record.size:
        part.unlink()
        raise UserError(
            f"{address}: {record.size:,} bytes were announced and {arrived:,} came; what came was deleted, "
            "run again to download it anew"
        )
    sha256 = checksum(part, hashlib.sha256())
    if digest:
        git_blob = hashlib.sha1(b"blob %d\0" % arrived, usedforsecurity=False)
        got = sha256 if len(digest) == 64 else checksum(part, git_blob)
        if got != digest:
            part.unlink()
            raise UserError(
                f"{address}: the checksum is {got} instead of {digest}, so the file was damaged on its way; "
                "it was deleted, run again to download it anew"
            )
    _write_record(path, dataclasses.replace(record, sha256=sha256))
    with translate_write_errors(path):
        part.replace(path)
    return Download(path=path, address=address, size=arrived, sha256=sha256)


def file_name(address: str) -> str:
    """The last segment of an address, with `_` for characters that some file system refuses: a%20b.txt?x=1, a_b.txt."""
    path = re.split(r"[?#]", address)[0]
    return re.sub(r"[^A-Za-z0-9._-]", "_", unquote(path).rpartition("/")[2])[-80:]


def unreachable(address: str, error: BaseException) -> UserError:
    """One line for a request that got no answer."""
    while error.__context__ is not None:  # the first error of the chain says why, in the fewest words
        error = error.__context__
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(
        f"{address}: cannot be reached ({reason}); check the network and the address, or set data.source to files "
        "(text on this machine) or stories (needs no network)"
    )


def _transfer(record: _Record, path: Path, headers: Mapping[str, str], bar: "tqdm[Any]") -> _Record:
    """Fill PATH.part until the body has ended; returns what the server said of the file."""
    part = _part(path)
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
            with _ask(record, offset, headers) as response:
                answered = True
                _check_status(record.address, offset, part, response)
                if response.status_code == 200:
                    offset = 0
                    if record.digest is None:
                        record = _announced(record.address, response)
                        _write_record(path, record)
                bar.total, bar.initial, bar.n = record.size, offset, offset
                # No block for the network's errors: urllib3 raises none of them as an OSError.
                with translate_write_errors(part), part.open("ab" if offset else "wb") as file:
                    for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
                        file.write(chunk)
                        bar.update(len(chunk))
            return record
        except (requests.RequestException, urllib3.exceptions.HTTPError, _Cut) as error:
            if not answered:
                raise unreachable(record.address, error) from error
            if failures == len(RETRY_SECONDS):
                reason = str(error) if isinstance(error, _Cut) else "the connection broke off"
                raise UserError(
                    f"{record.address}: {reason}, {failures + 1} times in a row at byte {furthest:,}; "
                    "what came is kept, run again later to go on from there"
                ) from error
            time.sleep(RETRY_SECONDS[failures])
            failures += 1


def _ask(record: _Record, offset: int, headers: Mapping[str, str]) -> requests.Response:
    """Request the file from byte `offset` on."""
    wanted = {**headers, "Accept-Encoding": "identity"}  # sizes and ranges count the bytes of the file itself
    if offset:
        wanted["Range"] = f"bytes={offset}-"
        if record.validator:
            wanted["If-Range"] = record.validator  # a file changed since then comes whole, with status 200
    return requests.get(record.address, headers=wanted, stream=True, timeout=(CONNECT_SECONDS, STALL_SECONDS))


def _check_status(address: str, offset: int, part: Path, response: requests.Response) -> None:
    status = response.status_code
    if status == 200 or (status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")):
        return
    if status in (206, 416):
        part.unlink(missing_ok=True)  # the next request begins anew
        raise _Cut(f"the server sent another range than the one from byte {offset:,} on")
    if status == 429 or status >= 500:
        raise _Cut(f"the server answered {status} {response.reason}")
    if status in (401, 403):
        raise UserError(f"{address}: no access ({status} {response.reason}); it needs a login or a permission")
    if status in (404, 410):
        raise UserError(f"{address}: no such file ({status} {response.reason}); check the address")
    raise UserError(f"{address}: the server answered {status} {response.reason}; check the address")


def _announced(address: str, response: requests.Response) -> _Record:
    length = response.headers.get("Content-Length", "")
    tag = response.headers.get("ETag", "")
    return _Record(
        address=address,
        size=int(length) if length.isdecimal() else None,
        # A weak ETag does not promise equal bytes (RFC 9110, section 13.1.5).
        validator=tag if tag.startswith('"') else response.headers.get("Last-Modified"),
    )


def _check_disk(path: Path, missing: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if missing > free:
        raise UserError(
            f"{path.parent}: the disk is full: {missing:,} bytes are still to come and {free:,} are free; "
            "free some space and run again"
        )


def checksum(path: Path, hasher: "hashlib._Hash") -> str:
    """The hexadecimal digest of a file's bytes, fed to `hasher`."""
    with (
        path.open("rb") as file,
        tqdm(desc=f"check {path.name}", total=path.stat().st_size, unit="B", unit_scale=True, delay=2) as bar,
    ):
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
            bar.update(len(chunk))
    return hasher.hexdigest()


def _path(address: str, cache: Path) -> Path:
    return cache / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}-{file_name(address)}"


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read_record(path: Path) -> _Record | None:
    """What is known of the file, or None if nothing, or nothing readable, was recorded."""
    try:
        return _Record(**json.loads(_record_path(path).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write_record(path: Path, record: _Record) -> None:
    with atomic_write(_record_path(path)) as file:
        file.write(json.dumps(dataclasses.asdict(record), indent=2).encode() + b"\n")
