"""What decides whether the bytes of two responses are put together: each case against the loopback server."""

import base64
import gzip
import hashlib
from types import SimpleNamespace

import pytest

from lm.corpus import transfer, web
from lm.errors import UserError

BODY = bytes(range(256)) * 1000
CHANGED = BODY[::-1]
SHA256 = hashlib.sha256(BODY).hexdigest()
MONDAY, TUESDAY = "Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(transfer, "RETRY_SECONDS", (0, 0))


@pytest.fixture
def url(loopback):
    loopback.files["/a.txt"] = BODY
    return f"{loopback.endpoint}/a.txt"


def leave_part(url, loopback, cache, size=100_000):
    """Leave the beginning of the file in the cache, as a killed process does."""
    loopback.cuts = [size, 0, 0, 0, 0]
    with pytest.raises(UserError):
        web.download(url, cache)
    loopback.cuts = []
    loopback.clear_log()


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ({"ETag": '"1"'}, {"ETag": '"2"'}, CHANGED),
        ({"Last-Modified": MONDAY}, {"Last-Modified": TUESDAY}, CHANGED),
        ({"ETag": '"1"', "Last-Modified": MONDAY}, {"ETag": '"2"', "Last-Modified": MONDAY}, CHANGED),
        ({"ETag": '"1"', "Last-Modified": MONDAY}, {"ETag": '"1"', "Last-Modified": TUESDAY}, CHANGED),
        ({"ETag": '"1"'}, {"ETag": '"1"'}, CHANGED + b"more"),
        ({"ETag": '"1"'}, {"ETag": '"1"'}, CHANGED[:-1]),
        ({"ETag": '"1"'}, {}, CHANGED),
        ({"ETag": 'W/"1"'}, {"ETag": 'W/"1"'}, CHANGED),
        ({}, {}, CHANGED),
    ],
)
def test_a_file_that_changes_between_two_runs_is_not_mixed(url, loopback, tmp_path, before, after, changed, if_range):
    loopback.validators, loopback.if_range, loopback.headers = False, if_range, before
    leave_part(url, loopback, tmp_path)
    loopback.files["/a.txt"], loopback.headers = changed, after
    assert web.download(url, tmp_path).path.read_bytes() == changed


@pytest.mark.parametrize(
    "headers", [{"ETag": '"1"'}, {"Last-Modified": MONDAY}, {"ETag": '"1"', "Last-Modified": MONDAY}]
)
def test_one_validator_is_enough_to_resume(url, loopback, tmp_path, headers):
    loopback.validators, loopback.headers = False, headers
    leave_part(url, loopback, tmp_path)
    assert web.download(url, tmp_path).path.read_bytes() == BODY
    assert [(body.range, body.sent) for body in loopback.bodies] == [("bytes=100000-", len(BODY) - 100_000)]


def test_a_range_without_a_validator_is_not_used(url, loopback, tmp_path):
    leave_part(url, loopback, tmp_path)
    loopback.validators, loopback.if_range = False, False
    assert web.download(url, tmp_path).path.read_bytes() == BODY
    assert [body.range for body in loopback.bodies] == ["bytes=100000-", ""]


def test_a_file_that_changes_all_the_time(url, loopback, tmp_path, monkeypatch):
    leave_part(url, loopback, tmp_path)
    loopback.if_range = False

    def change(seconds):
        loopback.files["/a.txt"] = loopback.files["/a.txt"][1:]

    monkeypatch.setattr(transfer, "time", SimpleNamespace(sleep=change))
    change(0)
    loopback.cuts = [0, 1000, 0, 1000]
    with pytest.raises(UserError, match=r"/a\.txt: the file on the server has changed, 3 times in a row"):
        web.download(url, tmp_path)
    assert web.download(url, tmp_path).path.read_bytes() == loopback.files["/a.txt"]


def test_a_process_killed_between_two_versions_keeps_nothing_of_the_old_one(url, loopback, tmp_path, monkeypatch):
    leave_part(url, loopback, tmp_path)
    loopback.files["/a.txt"] = CHANGED
    write_record = web._write_record

    def write_and_die(*args):
        write_record(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(web, "_write_record", write_and_die)
        web.download(url, tmp_path)
    assert web.download(url, tmp_path).path.read_bytes() == CHANGED


def test_a_server_that_sends_a_range_in_parts(url, loopback, tmp_path):
    leave_part(url, loopback, tmp_path)
    loopback.max_range = 60_000
    assert web.download(url, tmp_path).path.read_bytes() == BODY
    assert [body.sent for body in loopback.bodies] == [60_000, 60_000, 36_000]


@pytest.mark.parametrize("content_range", ["bytes 99999-255999/256000", "bytes */256000", "", "pages 1-2/3"])
def test_a_range_that_was_not_asked_for(url, loopback, tmp_path, content_range):
    leave_part(url, loopback, tmp_path)
    loopback.content_range = content_range
    assert web.download(url, tmp_path).path.read_bytes() == BODY
    assert [body.range for body in loopback.bodies] == ["bytes=100000-", ""]


@pytest.mark.parametrize("digest", [None, SHA256])
def test_an_encoded_response_is_decoded(url, loopback, tmp_path, digest):
    loopback.gzip = True
    got = web.download(url, tmp_path, size=len(BODY) if digest else None, digest=digest)
    assert (got.path.read_bytes(), got.size, got.sha256) == (BODY, len(BODY), SHA256)


@pytest.mark.parametrize("digest", [None, SHA256])
@pytest.mark.parametrize("lengths", [True, False])
def test_an_encoded_response_is_never_continued(url, loopback, tmp_path, digest, lengths):
    loopback.gzip, loopback.lengths, loopback.cuts = True, lengths, [500, 700]
    got = web.download(url, tmp_path, size=len(BODY) if digest else None, digest=digest)
    assert got.path.read_bytes() == BODY


def test_an_encoding_that_begins_after_a_cut(url, loopback, tmp_path):
    leave_part(url, loopback, tmp_path)
    loopback.gzip, loopback.if_range = True, False
    leave_part(url, loopback, tmp_path, size=0)
    assert web.download(url, tmp_path).path.read_bytes() == BODY


def test_a_compressed_file_is_stored_as_it_is(loopback, tmp_path):
    loopback.files["/a.txt.gz"] = data = gzip.compress(b"text")
    for encoding in ("x-gzip", "gzip"):
        loopback.headers = {"Content-Encoding": encoding}
        url = f"{loopback.endpoint}/a.txt.gz?{encoding}"
        assert web.download(url, tmp_path).path.read_bytes() == data


def test_an_encoding_that_cannot_be_decoded(url, loopback, tmp_path):
    loopback.headers = {"Content-Encoding": "br"}
    with pytest.raises(UserError, match=r"/a\.txt: the server answered with the encoding br, which was not asked for"):
        web.download(url, tmp_path)


def test_a_login_in_the_url_is_sent_as_utf8(url, loopback, tmp_path):
    assert web.download(url.replace("//", "//ann:p%C3%A4ss\u20ac@"), tmp_path).path.read_bytes() == BODY
    assert loopback.logins == ["Basic " + base64.b64encode("ann:päss€".encode()).decode()]


@pytest.mark.parametrize("digest", [None, SHA256])
@pytest.mark.parametrize("kind", ["text/html", "Text/HTML; charset=utf-8", "application/xhtml+xml"])
def test_a_page_instead_of_the_file(url, loopback, tmp_path, kind, digest):
    leave_part(url, loopback, tmp_path)
    loopback.headers = {"Content-Type": kind}
    with pytest.raises(
        UserError, match=r"/a\.txt: an HTML page instead of the file; check that the URL needs no login"
    ):
        web.download(url, tmp_path, digest=digest)
    loopback.headers = {}
    assert web.download(url, tmp_path).path.read_bytes() == BODY
    assert loopback.bodies[-1].range == "bytes=100000-"  # what was received before the login expired is still used


@pytest.mark.parametrize("length", ["-1", "\u00b2", "9" * 5000])
def test_a_length_that_is_no_number_is_not_used(url, loopback, tmp_path, length):
    loopback.lengths, loopback.headers = False, {"Content-Length": length}
    assert web.download(url, tmp_path).path.read_bytes() == BODY


@pytest.mark.parametrize("digits", [18, 400])
def test_a_length_that_no_disk_can_hold(url, loopback, tmp_path, digits):
    loopback.lengths, loopback.headers = False, {"Content-Length": "9" * digits}
    with pytest.raises(UserError, match=r"not enough disk space: 999,|, 3 times in a row at byte"):
        web.download(url, tmp_path)
