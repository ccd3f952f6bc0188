import hashlib
import json
import resource
import shutil
import socket
import time
from collections import namedtuple

import pytest

from lm.corpus import web
from lm.errors import UserError

BODY = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(web, "RETRY_SECONDS", (0, 0))


@pytest.fixture
def address(loopback):
    loopback.files["/folder/a b.txt"] = BODY
    return f"{loopback.endpoint}/folder/a%20b.txt?x=1"


def names(folder):
    return sorted(path.name.partition("-")[2] for path in folder.iterdir())


def test_a_file_comes_whole_and_is_recorded(address, loopback, tmp_path):
    got = web.download(address, tmp_path)
    assert (got.path.read_bytes(), got.size, got.sha256, got.address) == (BODY, len(BODY), SHA256, address)
    assert names(tmp_path) == ["a_b.txt", "a_b.txt.json"]
    assert json.loads(got.path.with_name(got.path.name + ".json").read_text())["sha256"] == SHA256


def test_a_later_run_needs_no_network(address, loopback, tmp_path):
    first = web.download(address, tmp_path)
    asked = len(loopback.requests)
    assert web.cached(address, tmp_path) == first
    assert len(loopback.requests) == asked
    assert web.cached(address + "2", tmp_path) is None


def test_an_altered_file_in_the_cache_is_not_taken(address, tmp_path, capsys):
    path = web.download(address, tmp_path).path
    path.write_bytes(BODY[:-1] + b"x")
    assert web.cached(address, tmp_path) is None
    assert "was altered since its download" in capsys.readouterr().err
    assert web.download(address, tmp_path).path.read_bytes() == BODY


@pytest.mark.parametrize("digest", [None, SHA256, hashlib.sha1(b"blob 256000\0" + BODY).hexdigest()])
def test_cut_connections_are_taken_up_where_they_broke_off(address, loopback, tmp_path, digest):
    loopback.cuts = [100_000, 50_000]
    got = web.download(address, tmp_path, size=len(BODY) if digest else None, digest=digest)
    assert got.path.read_bytes() == BODY
    assert [(body.range, body.sent) for body in loopback.bodies] == [
        ("", 100_000),
        ("bytes=100000-", 50_000),
        ("bytes=150000-", len(BODY) - 150_000),
    ]


def test_a_server_without_ranges_starts_anew(address, loopback, tmp_path):
    loopback.cuts, loopback.ranges = [100_000], False
    assert web.download(address, tmp_path).path.read_bytes() == BODY
    assert [body.sent for body in loopback.bodies] == [100_000, len(BODY)]


def left_over(address, loopback, cache):
    """A part of BODY in the cache, as a killed process leaves it."""
    loopback.cuts = [100_000, 0, 0, 0]
    with pytest.raises(UserError):
        web.download(address, cache)
    loopback.forget()


def test_another_process_goes_on_from_the_part(address, loopback, tmp_path):
    left_over(address, loopback, tmp_path)
    assert web.download(address, tmp_path).path.read_bytes() == BODY
    assert [(body.range, body.sent) for body in loopback.bodies] == [("bytes=100000-", len(BODY) - 100_000)]


def test_a_file_that_changed_meanwhile_comes_whole(address, loopback, tmp_path):
    left_over(address, loopback, tmp_path)
    loopback.files["/folder/a b.txt"] = changed = BODY[::-1]
    assert web.download(address, tmp_path).path.read_bytes() == changed


def test_without_a_validator_the_part_is_not_trusted(address, loopback, tmp_path):
    loopback.validators = False
    left_over(address, loopback, tmp_path)
    assert web.download(address, tmp_path).path.read_bytes() == BODY
    assert [(body.range, body.sent) for body in loopback.bodies] == [("", len(BODY))]


def test_a_part_that_was_whole_when_the_process_died_is_only_verified(address, loopback, tmp_path):
    left_over(address, loopback, tmp_path)
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(BODY)
    assert web.download(address, tmp_path).path.read_bytes() == BODY
    assert not loopback.requests


def test_a_part_longer_than_the_file_starts_anew(address, loopback, tmp_path):
    web._part(web._path(address, tmp_path)).write_bytes(BODY + b"too much")
    with pytest.raises(UserError, match="256,000 bytes were announced and 256,008 came; what came was deleted"):
        web.download(address, tmp_path, size=len(BODY), digest=SHA256)
    assert web.download(address, tmp_path, size=len(BODY), digest=SHA256).path.read_bytes() == BODY


def test_a_size_that_no_one_announces(address, loopback, tmp_path):
    loopback.lengths = False
    assert web.download(address, tmp_path).size == len(BODY)


def test_a_damaged_body_is_deleted(address, loopback, tmp_path):
    loopback.damaged = True
    with pytest.raises(UserError, match=rf"the checksum is \w+ instead of {SHA256}, so the file was damaged"):
        web.download(address, tmp_path, size=len(BODY), digest=SHA256)
    assert not list(tmp_path.iterdir())


def test_another_size_than_announced(address, tmp_path):
    with pytest.raises(UserError, match="256,001 bytes were announced and 256,000 came"):
        web.download(address, tmp_path, size=len(BODY) + 1, digest=SHA256)
    assert not list(tmp_path.iterdir())


def test_an_empty_file(loopback, tmp_path):
    loopback.files["/empty.txt"] = b""
    with pytest.raises(UserError, match=r"/empty\.txt: the file is empty; name another one$"):
        web.download(f"{loopback.endpoint}/empty.txt", tmp_path)
    assert names(tmp_path) == ["empty.txt.json"]


def test_a_connection_that_keeps_breaking_off(address, loopback, tmp_path):
    loopback.cuts = [100_000, 0, 0, 0]
    with pytest.raises(UserError, match=r"the connection broke off, 3 times in a row at byte 100,000; what came is"):
        web.download(address, tmp_path)
    assert names(tmp_path) == ["a_b.txt.json", "a_b.txt.part"]


def test_a_busy_server_is_asked_again(address, loopback, tmp_path):
    loopback.statuses = [503, 429]
    assert web.download(address, tmp_path).path.read_bytes() == BODY
    loopback.statuses = [503] * 3
    with pytest.raises(UserError, match="the server answered 503 Service Unavailable, 3 times in a row at byte 0;"):
        web.download(address + "2", tmp_path)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, r"no access \(401 Unauthorized\); it needs a login"),
        (403, r"no access \(403 Forbidden\); it needs a login"),
        (404, r"no such file \(404 Not Found\); check the address"),
        (418, r"the server answered 418 I'm a Teapot; check the address"),
    ],
)
def test_refusals(address, loopback, tmp_path, status, says):
    loopback.statuses = [status]
    with pytest.raises(UserError, match=says):
        web.download(address, tmp_path)


def test_a_server_that_stalls(address, loopback, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "STALL_SECONDS", 0.1)
    monkeypatch.setattr(web, "RETRY_SECONDS", ())
    loopback.seconds_a_chunk = 0.4
    with pytest.raises(UserError, match="the connection broke off, 1 times in a row"):
        web.download(address, tmp_path)


def test_no_network(tmp_path):
    with socket.socket() as listener:  # bound and never listening: connections are refused
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/a.txt"
        started = time.monotonic()
        with pytest.raises(UserError, match=r"cannot be reached \(Connection refused\); .* set data\.source to files"):
            web.download(address, tmp_path)
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("address", ["http://", "http://a..b/c.txt", "https://[1/a.txt"])
def test_addresses_that_are_none(address, tmp_path):
    with pytest.raises(UserError, match="cannot be reached"):
        web.download(address, tmp_path)


def test_a_disk_that_is_too_small_is_known_before_the_body(address, loopback, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    with pytest.raises(UserError, match=r"the disk is full: 256,000 bytes are still to come and 1,000 are free"):
        web.download(address, tmp_path, size=len(BODY), digest=SHA256)
    assert not loopback.requests


def test_a_disk_that_fills_up_keeps_what_came(address, loopback, tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(UserError, match=r"\.part: the disk is full \(File too large\); free some space"):
            web.download(address, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert web.download(address, tmp_path).path.read_bytes() == BODY
    assert loopback.bodies[-1].range == "bytes=100000-"


def test_two_downloads_at_once(tmp_path):
    with web.locked(tmp_path), pytest.raises(UserError, match="another download is running in this folder"):
        with web.locked(tmp_path):
            pass
    with web.locked(tmp_path):
        pass


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file/cache: cannot be written \(Not a directory\)"):
        with web.locked(tmp_path / "file/cache"):
            pass


def test_an_address_stays_inside_the_cache(tmp_path):
    for address in ("http://h/../../etc/passwd", "http://h/%2e%2e%2f%2e%2e%2fx", "http://h/..", "http://h/a\\..\\b"):
        assert web._path(address, tmp_path).resolve().parent == tmp_path.resolve()
