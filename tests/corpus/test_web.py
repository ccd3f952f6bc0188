import hashlib
import json
import resource
import shutil
import socket
import time
from collections import namedtuple

import pytest

from lm.corpus import transfer, web
from lm.errors import UserError

BODY = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(transfer, "RETRY_SECONDS", (0, 0))


@pytest.fixture
def url(loopback):
    loopback.files["/folder/a b.txt"] = BODY
    return f"{loopback.endpoint}/folder/a%20b.txt?x=1"


def names(folder):
    return sorted(path.name.partition("-")[2] for path in folder.iterdir())


def test_a_file_is_downloaded_and_recorded(url, loopback, tmp_path):
    got = web.download(url, tmp_path)
    assert (got.path.read_bytes(), got.size, got.sha256) == (BODY, len(BODY), SHA256)
    assert names(tmp_path) == ["a_b.txt", "a_b.txt.json"]
    assert json.loads(got.path.with_name(got.path.name + ".json").read_text())["sha256"] == SHA256


def test_a_later_run_needs_no_network(url, loopback, tmp_path):
    first = web.download(url, tmp_path)
    num_requests = len(loopback.requests)
    assert web.find_cached(url, tmp_path) == first
    assert len(loopback.requests) == num_requests
    assert web.find_cached(url + "2", tmp_path) is None


def test_a_changed_file_in_the_cache_is_not_used(url, tmp_path, capsys):
    path = web.download(url, tmp_path).path
    path.write_bytes(BODY[:-1] + b"x")
    assert web.find_cached(url, tmp_path) is None
    assert "has changed since its download" in capsys.readouterr().err
    assert web.download(url, tmp_path).path.read_bytes() == BODY


@pytest.mark.parametrize("digest", [None, SHA256, hashlib.sha1(b"blob 256000\0" + BODY).hexdigest()])
def test_a_lost_connection_is_resumed(url, loopback, tmp_path, digest):
    loopback.cuts = [100_000, 50_000]
    got = web.download(url, tmp_path, size=len(BODY) if digest else None, digest=digest)
    assert got.path.read_bytes() == BODY
    assert [(body.range, body.sent) for body in loopback.bodies] == [
        ("", 100_000),
        ("bytes=100000-", 50_000),
        ("bytes=150000-", len(BODY) - 150_000),
    ]


def test_a_server_without_ranges_starts_over(url, loopback, tmp_path):
    loopback.cuts, loopback.ranges = [100_000], False
    assert web.download(url, tmp_path).path.read_bytes() == BODY
    assert [body.sent for body in loopback.bodies] == [100_000, len(BODY)]


def leave_part(url, loopback, cache):
    """Leave a part of BODY in the cache, as a killed process does."""
    loopback.cuts = [100_000, 0, 0, 0]
    with pytest.raises(UserError):
        web.download(url, cache)
    loopback.clear_log()


def test_another_process_resumes(url, loopback, tmp_path):
    leave_part(url, loopback, tmp_path)
    assert web.download(url, tmp_path).path.read_bytes() == BODY
    assert [(body.range, body.sent) for body in loopback.bodies] == [("bytes=100000-", len(BODY) - 100_000)]


def test_a_file_that_has_changed_is_downloaded_from_the_start(url, loopback, tmp_path):
    leave_part(url, loopback, tmp_path)
    loopback.files["/folder/a b.txt"] = changed = BODY[::-1]
    assert web.download(url, tmp_path).path.read_bytes() == changed


def test_without_a_validator_the_part_is_not_used(url, loopback, tmp_path):
    loopback.validators = False
    leave_part(url, loopback, tmp_path)
    loopback.cuts = [200_000]  # not even by the process that received it
    assert web.download(url, tmp_path).path.read_bytes() == BODY
    assert [(body.range, body.sent) for body in loopback.bodies] == [("", 200_000), ("", len(BODY))]


def test_a_complete_part_is_only_verified(url, loopback, tmp_path):
    leave_part(url, loopback, tmp_path)
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(BODY)
    assert web.download(url, tmp_path).path.read_bytes() == BODY
    assert not loopback.requests


def test_a_part_longer_than_the_file_is_deleted(url, loopback, tmp_path):
    web._part_path(web._path(url, tmp_path)).write_bytes(BODY + b"too much")
    with pytest.raises(UserError, match="expected 256,000 bytes, got 256,008; the download was deleted"):
        web.download(url, tmp_path, size=len(BODY), digest=SHA256)
    assert web.download(url, tmp_path, size=len(BODY), digest=SHA256).path.read_bytes() == BODY


def test_an_unknown_size(url, loopback, tmp_path):
    loopback.lengths = False
    assert web.download(url, tmp_path).size == len(BODY)


def test_a_damaged_file_is_deleted(url, loopback, tmp_path):
    loopback.damaged = True
    with pytest.raises(UserError, match=rf"expected checksum {SHA256}, got \w+; the damaged download was deleted"):
        web.download(url, tmp_path, size=len(BODY), digest=SHA256)
    assert not list(tmp_path.iterdir())


def test_a_wrong_size(url, tmp_path):
    with pytest.raises(UserError, match="expected 256,001 bytes, got 256,000"):
        web.download(url, tmp_path, size=len(BODY) + 1, digest=SHA256)
    assert not list(tmp_path.iterdir())


def test_an_empty_file(loopback, tmp_path):
    loopback.files["/empty.txt"] = b""
    with pytest.raises(UserError, match=r"/empty\.txt: the file is empty; choose another one$"):
        web.download(f"{loopback.endpoint}/empty.txt", tmp_path)
    assert names(tmp_path) == ["empty.txt.json"]


def test_a_connection_that_is_lost_repeatedly(url, loopback, tmp_path):
    loopback.cuts = [100_000, 0, 0, 0]
    with pytest.raises(
        UserError,
        match=r"the connection was lost, 3 times in a row at byte 100,000; the bytes received so far are kept",
    ):
        web.download(url, tmp_path)
    assert names(tmp_path) == ["a_b.txt.json", "a_b.txt.part"]


def test_a_busy_server_is_retried(url, loopback, tmp_path):
    loopback.statuses = [503, 429]
    assert web.download(url, tmp_path).path.read_bytes() == BODY
    loopback.statuses = [503] * 3
    with pytest.raises(UserError, match="the server answered 503 Service Unavailable, 3 times in a row at byte 0;"):
        web.download(url + "2", tmp_path)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, r"access denied \(401 Unauthorized\); the URL requires a login"),
        (403, r"access denied \(403 Forbidden\); the URL requires a login"),
        (404, r"no such file \(404 Not Found\); check the URL"),
        (418, r"the server answered 418 I'm a Teapot; check the URL"),
    ],
)
def test_status_codes_that_are_not_retried(url, loopback, tmp_path, status, says):
    loopback.statuses = [status]
    with pytest.raises(UserError, match=says):
        web.download(url, tmp_path)


def test_a_server_that_stalls(url, loopback, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "STALL_SECONDS", 0.1)
    monkeypatch.setattr(transfer, "RETRY_SECONDS", ())
    loopback.seconds_per_chunk = 0.4
    with pytest.raises(UserError, match="the connection was lost, 1 times in a row"):
        web.download(url, tmp_path)


def test_no_network(tmp_path):
    with socket.socket() as listener:  # bound but not listening, so connections are refused
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.txt"
        started = time.monotonic()
        with pytest.raises(UserError, match=r"cannot be reached \(Connection refused\); .* set data\.source to files"):
            web.download(url, tmp_path)
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("url", ["http://", "http://a..b/c.txt", "https://[1/a.txt"])
def test_invalid_urls(url, tmp_path):
    with pytest.raises(UserError, match="cannot be reached"):
        web.download(url, tmp_path)


def test_a_disk_that_is_too_small_is_detected_before_the_download(url, loopback, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    with pytest.raises(UserError, match=r"not enough disk space: 256,000 more bytes are needed and 1,000 are free"):
        web.download(url, tmp_path, size=len(BODY), digest=SHA256)
    assert not loopback.requests


def test_a_disk_that_fills_up_keeps_the_part(url, loopback, tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(UserError, match=r"\.part: the disk is full \(File too large\); free some space"):
            web.download(url, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert web.download(url, tmp_path).path.read_bytes() == BODY
    assert loopback.bodies[-1].range == "bytes=100000-"


def test_a_file_name_stays_inside_the_cache(tmp_path):
    for url in ("http://h/../../etc/passwd", "http://h/%2e%2e%2f%2e%2e%2fx", "http://h/..", "http://h/a\\..\\b"):
        assert web._path(url, tmp_path).resolve().parent == tmp_path.resolve()
