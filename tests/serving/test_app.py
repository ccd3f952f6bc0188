"""What each path answers, and the errors of requests that are not valid."""

import json
from http.client import HTTPConnection

import pytest

from lm.serving.app import is_loopback
from tests.serving.conftest import send


def test_health(serving, alphabet):
    with serving(alphabet) as server:
        assert send(server, "GET", "/health")[::2] == (200, b'{"status": "ok"}')
        server.engine.close()
        status, _, body = send(server, "GET", "/health")
        assert (status, json.loads(body)["error"]["message"]) == (503, "the server has stopped")


def test_a_bug_is_a_server_error_without_details(serving, alphabet, monkeypatch, capsys):
    monkeypatch.setattr("lm.serving.app.parse", lambda *_: 1 / 0)
    with serving(alphabet) as server:
        status, headers, body = send(server, "POST", "/v1/completions", b"{}", Content_Type="application/json")
    assert (status, headers["X-Content-Type-Options"]) == (500, "nosniff")
    assert json.loads(body)["error"] == {
        "message": "the server has failed; its log says why", "type": "server_error", "param": None, "code": None
    }  # fmt: skip
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_half_of_a_surrogate_pair_in_an_error(alphabet_server):
    for body in (rb'{"\ud800": 1}', rb'{"prompt": "\ud800"}', rb'{"model": "\ud800"}'):
        status, _, reply = send(alphabet_server, "POST", "/v1/completions", body, Content_Type="application/json")
        assert status in (400, 404) and "d800" in json.loads(reply)["error"]["message"].lower()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "message"),
    [
        ("POST", "/v1/completions", b"{", {}, 400, "the body is not JSON"),
        ("POST", "/v1/completions", b"{}", {"Content_Type": "text/plain"}, 415, "expected application/json"),
        ("GET", "/v1/completions", None, {}, 405, "expected POST, got GET"),
        ("DELETE", "/v1/models", None, {}, 405, "expected GET, got DELETE"),
        ("OPTIONS", "/v1/completions", None, {}, 405, "expected POST, got OPTIONS"),
        ("BREW", "/", None, {}, 501, "Unsupported method"),
        ("GET", "/v2", None, {}, 404, "/v2: not found; the paths are /, /v1/models, /v1/completions"),
        ("GET", "/../pyproject.toml", None, {}, 404, "not found"),
        ("POST", "/", b"", {"Content_Length": "-1"}, 400, "Content-Length: expected a number, got '-1'"),
        ("POST", "/v1/completions", b"", {"Content_Length": "9" * 18}, 413, "at most 4,096"),
        ("POST", "/", b"", {"Content_Length": "9" * 30}, 413, "expected a shorter body, got 9999"),
        ("POST", "/", b"", {"Content_Length": "5", "Transfer_Encoding": "chunked"}, 400, "not allowed together with"),
        ("GET", "/", None, {"Host": "a\u00e9"}, 421, "is not this machine"),
        ("GET", "/v1/models/other", None, {}, 404, "model: expected 'tiny', got 'other'"),
        ("GET", "/v1/models/", None, {}, 404, "/v1/models/: not found"),
        ("GET", "/a%0Ab", None, {}, 404, "/a\\nb: not found"),
        ("GET", "/", None, {"Host": "evil.example"}, 421, "'evil.example' is not this machine"),
        ("GET", "/", None, {"Host": "127.0.0.1.evil.example:80"}, 421, "is not this machine"),
        ("GET", "/", None, {"Host": "[::1"}, 421, "is not this machine"),
    ],
)
def test_invalid_requests_get_clear_errors(alphabet_server, method, path, body, headers, status, message):
    got, sent, reply = send(alphabet_server, method, path, body, **{"Content_Type": "application/json"} | headers)
    assert got == status
    assert sent["Content-Type"] == "application/json"
    assert not [name for name in sent if name.lower().startswith("access-control")]
    assert message in json.loads(reply)["error"]["message"]
    if status == 405:
        assert sent["Allow"] in ("GET", "POST")


def test_names_of_this_machine_are_accepted(alphabet_server):
    for host in ("localhost", "localhost:1", "127.0.0.1:9", "[::1]:80"):
        assert send(alphabet_server, "GET", "/v1/models", Host=host)[0] == 200
    assert is_loopback("::1") and is_loopback("127.9.9.9")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.168.0.1") and not is_loopback("")


def test_the_page_is_served(alphabet_server):
    status, headers, body = send(alphabet_server, "GET", "/?x=1")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"<title>tiny" in body
    status, headers, empty = send(alphabet_server, "HEAD", "/?x=1")
    assert (status, empty) == (200, b"")
    assert headers["Content-Length"] == str(len(body))


def test_a_connection_may_send_several_requests(alphabet_server):
    connection = HTTPConnection("127.0.0.1", alphabet_server.server_port, timeout=20)
    for path, status in (("/v1/models", 200), ("/nowhere", 404), ("/v1/models", 200)):
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert response.status == status
        assert connection.sock is not None
    connection.close()
