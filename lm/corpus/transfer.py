"""Transfer a file from a web server, and resume where an earlier transfer stopped (RFC 9110, section 14).

A transfer is resumed only if something tells that the rest belongs to the same version of the file: the checksum that
the hub reports, or an ETag or Last-Modified date, which is sent with the request and compared with the response.
"""

import gzip
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import urllib3
from requests.auth import HTTPBasicAuth
from requests.utils import get_auth_from_url
from tqdm import tqdm

from lm.atomic import translate_write_errors
from lm.corpus.content import html_error
from lm.corpus.urls import file_name, redact
from lm.errors import UserError

CHUNK_BYTES = 1 << 16
CONNECT_SECONDS = 10.0
STALL_SECONDS = 30.0  # a connection that receives nothing for this long is considered lost
RETRY_SECONDS = (0.5, 1.0, 2.0)  # waits between consecutive attempts that receive no new bytes


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known about a file on a server.

    `digest` is the checksum that the hub reports. Other servers only have an ETag or Last-Modified date, which tells
    whether a file has changed. `sha256` is set once the file is complete.
    """

    url: str
    size: int | None = None
    digest: str | None = None
    etag: str | None = None
    last_modified: str | None = None
    sha256: str | None = None

    @property
    def validator(self) -> str | None:
        """The value of If-Range. A weak ETag does not guarantee equal bytes (RFC 9110, section 13.1.5)."""
        return self.etag if self.etag and self.etag.startswith('"') else self.last_modified

    @property
    def resumable(self) -> bool:
        """Whether the bytes of an earlier transfer can be continued."""
        return bool(self.digest or self.validator)


class _Interrupted(Exception):
    """The transfer was interrupted; another request may succeed."""


def transfer(
    url: str,
    record: Record,
    part: Path,
    headers: Mapping[str, str],
    bar: "tqdm[Any]",
    save: Callable[[Record], None],
) -> Record:
    """Receive a file into `part`, after the bytes that an earlier transfer left there, until it is complete.

    Args:
        url: The http(s) URL of the file.
        record: What is known about the file, and about the bytes in `part`. Its `url` is shown in messages.
        part: The file to write.
        headers: Headers to send with every request.
        bar: The progress bar.
        save: Called with the new record before the first byte of a new version of the file is written.

    Returns:
        The last record.

    Raises:
        UserError: If the server cannot be reached, refuses the request or answers with an HTML page, the connection is
            lost repeatedly, or the disk is full.
    """
    furthest, failures, answered = 0, 0, False
    while True:
        offset = part.stat().st_size if part.exists() else 0
        if offset > furthest:
            furthest, failures = offset, 0
        if not record.resumable:
            part.unlink(missing_ok=True)
            offset = 0
        if record.size is not None:
            if part.exists() and offset >= record.size:
                return record
            check_disk(part.parent, record.size - offset)
        try:
            with _request(url, record, offset, headers) as response:
                answered = True
                _check_response(record, offset, part, response)
                if response.status_code == 200:
                    offset = 0
                    part.unlink(missing_ok=True)  # before the new record is saved, which does not describe these bytes
                    if record.digest is None:
                        record = _record_from_headers(record.url, response)
                        save(record)
                        check_disk(part.parent, record.size or 0)
                bar.total, bar.initial, bar.n = record.size, offset, offset
                # Only writing can raise an OSError here: urllib3 converts network errors into its own exceptions.
                with translate_write_errors(part), part.open("ab" if offset else "wb") as file:
                    for chunk in _body(record.url, response):
                        file.write(chunk)
                        bar.update(len(chunk))
                    received = file.tell() - offset
            if response.status_code == 200 or record.size is None:
                return record
            if received == 0:
                raise _Interrupted("the server sent no more bytes")
        except (requests.RequestException, urllib3.exceptions.HTTPError, _Interrupted) as error:
            if not answered:
                raise unreachable_error(url, error) from error
            if failures == len(RETRY_SECONDS):
                reason = str(error) if isinstance(error, _Interrupted) else "the connection was lost"
                kept = "the bytes received so far are kept, run again later to resume"
                raise UserError(
                    f"{record.url}: {reason}, {failures + 1} times in a row at byte {furthest:,}; "
                    f"{kept if record.resumable and part.exists() else 'run again later'}"
                ) from error
            time.sleep(RETRY_SECONDS[failures])
            failures += 1


def unreachable_error(url: str, error: BaseException) -> UserError:
    """Return the UserError for a request that received no response."""
    while error.__context__ is not None:  # the first error of the chain gives the cause in the fewest words
        error = error.__context__
    reason = getattr(error, "strerror", None) or str(error) or "no answer"
    return UserError(
        redact(
            f"{url}: cannot be reached ({reason}); check the network and the URL, or set data.source to files "
            "(local text) or stories (no network needed)"
        )
    )


def _request(url: str, record: Record, offset: int, headers: Mapping[str, str]) -> requests.Response:
    """Request the file, starting at byte `offset`."""
    # No compression, because sizes and ranges must count the bytes of the file itself.
    request_headers = {**headers, "Accept-Encoding": "identity"}
    if offset:
        request_headers["Range"] = f"bytes={offset}-"
        if record.validator:
            # If the file has changed, the server sends all of it, with status 200.
            request_headers["If-Range"] = record.validator
    timeout = (CONNECT_SECONDS, STALL_SECONDS)
    return requests.get(url, headers=request_headers, auth=_login(url), stream=True, timeout=timeout)


def _login(url: str) -> HTTPBasicAuth | None:
    """Return the user name and password in a URL as UTF-8. By itself, requests fails if they are not Latin-1."""
    try:
        user, password = get_auth_from_url(url)
    except ValueError:
        return None  # the request reports that the URL is not valid
    return HTTPBasicAuth(user.encode(), password.encode()) if user or password else None


def _check_response(record: Record, offset: int, part: Path, response: requests.Response) -> None:
    """Check that the response holds the file, or with status 206 the rest of the version that the part begins.

    Raises:
        _Interrupted: If another request may succeed. The part is deleted if it cannot be continued.
        UserError: If no request will.
    """
    url, status = record.url, response.status_code
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if status in (200, 206) and kind in ("text/html", "application/xhtml+xml"):
        raise html_error(url)
    if status == 200:
        return
    if status in (206, 416):
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if status == 416 or not found or found[1] != str(offset) or _encoding(url, response):
            part.unlink(missing_ok=True)  # the next request starts over
            raise _Interrupted(f"the server did not send the range from byte {offset:,} on")
        if not _is_same_version(record, found[2], response):
            part.unlink()
            raise _Interrupted("the file on the server has changed")
        return
    if status == 429 or status >= 500:
        raise _Interrupted(f"the server answered {status} {response.reason}")
    if status in (401, 403):
        raise UserError(f"{url}: access denied ({status} {response.reason}); the URL requires a login or permission")
    if status in (404, 410):
        raise UserError(f"{url}: no such file ({status} {response.reason}); check the URL")
    raise UserError(f"{url}: the server answered {status} {response.reason}; check the URL")


def _is_same_version(record: Record, total: str, response: requests.Response) -> bool:
    """Whether a response with status 206 continues the recorded version of the file, which has `total` bytes."""
    if total != "*" and record.size is not None and total != str(record.size):
        return False
    if record.digest:
        return True  # the checksum decides
    sent = {name: response.headers.get(name) for name in ("ETag", "Last-Modified")}
    known = {"ETag": record.etag, "Last-Modified": record.last_modified}
    # A server may leave out one of the two.
    return any(sent.values()) and all(value in (None, known[name]) for name, value in sent.items())


def _record_from_headers(url: str, response: requests.Response) -> Record:
    if _encoding(url, response):
        return Record(url=url)  # the headers describe the encoded bytes
    length = response.headers.get("Content-Length", "")
    return Record(
        url=url,
        size=int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None,
        etag=response.headers.get("ETag"),
        last_modified=response.headers.get("Last-Modified"),
    )


def _encoding(url: str, response: requests.Response) -> str:
    """Return the encoding that must be undone to get the file, or "".

    Some servers encode every response, whatever the request asks for. Others declare the format of a .gz file as its
    encoding; such a file is kept as it is.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower().removeprefix("x-")
    return "" if encoding == "identity" or file_name(url).endswith(".gz") else encoding


def _body(url: str, response: requests.Response) -> Iterator[bytes]:
    """Yield the bytes of the file."""
    if not (encoding := _encoding(url, response)):
        yield from response.raw.stream(CHUNK_BYTES, decode_content=False)
        return
    if encoding != "gzip":
        raise UserError(
            f"{url}: the server answered with the encoding {encoding}, which was not asked for; "
            "download the file and list its path"
        )
    try:
        with gzip.GzipFile(fileobj=response.raw) as stream:  # unlike urllib3, it notices a missing end
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _Interrupted("the response is not a complete gzip file") from error


def check_disk(folder: Path, missing: int) -> None:
    """Check that the disk of a folder has space for `missing` more bytes.

    Raises:
        UserError: If it has not.
    """
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise UserError(
            f"{folder}: not enough disk space: {missing:,} more bytes are needed and {free:,} are free; "
            "free some space and run again"
        )
