"""Clients that are slow, gone, or do not speak HTTP, on plain sockets."""

import asyncio
import errno
import json
import socket
import struct
import threading
import time
from contextlib import ExitStack, suppress

import pytest

from lm.serving import app, connection
from lm.serving.server import report
from tests.serving.conftest import eventually, running

ENDLESS = {"prompt": "1", "max_tokens": 200, "temperature": 0}


@pytest.fixture(scope="module")
def server(serving, alphabet):
    with serving(alphabet, rows=2, request_bytes=4096) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up on slow clients after 0.3 seconds."""
    monkeypatch.setattr(app, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(connection, "STALL_SECONDS", 0.3)


def connect(server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server_port), timeout=20)


def completion(fields: dict, *headers: str, version: str = "1.1") -> bytes:
    body = json.dumps(fields).encode()
    head = [f"POST /v1/completions HTTP/{version}", "Host: localhost", "Content-Type: application/json", *headers]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def read_all(client: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    return b"".join(iter(lambda: client.recv(1 << 16), b""))


def exchange(server, request: bytes) -> bytes:
    with connect(server) as client:
        client.sendall(request)
        return read_all(client)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_closes_its_sending_side_gets_its_response(server, slowed, version):
    with connect(server) as client:
        client.sendall(completion(ENDLESS | {"max_tokens": 60}, version=version))
        client.shutdown(socket.SHUT_WR)
        reply = read_all(client)
    assert reply.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK" if version == "1.1" else b"HTTP/1.1 200 OK")
    assert b'"text": "234567890123456789' in reply


def test_a_client_that_closes_its_sending_side_gets_its_stream(server, slowed):
    with connect(server) as client:
        client.sendall(completion(ENDLESS | {"max_tokens": 60, "stream": True}))
        client.shutdown(socket.SHUT_WR)
        reply = read_all(client)
    assert reply.count(b'"text": ') == 60 and b"data: [DONE]" in reply


@pytest.mark.parametrize("method", ["close", "reset"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_is_gone_frees_its_row(server, slowed, stream, method):
    with connect(server) as client:
        client.sendall(completion(ENDLESS | {"max_tokens": 2048, "stream": stream}))
        assert eventually(lambda: running(server) == 1)
        if method == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        started = time.monotonic()
    assert eventually(lambda: running(server) == 0)
    assert time.monotonic() - started < 1.0  # far less than the text would take


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nA: "])
def test_a_request_that_never_becomes_complete_is_dropped(serving, alphabet, impatient, sent):
    with serving(alphabet) as server, connect(server) as client:
        client.sendall(sent)
        stop = threading.Event()

        def drip() -> None:
            with suppress(OSError):
                while sent and not stop.wait(0.05):
                    client.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        started = time.monotonic()
        with suppress(ConnectionResetError):
            assert read_all(client) == b""
        assert 0.2 < time.monotonic() - started < 5
        stop.set()
        thread.join()


def test_a_connection_that_waits_after_a_response_is_dropped(serving, alphabet, impatient):
    with serving(alphabet) as server:
        reply = exchange(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert reply.endswith(b'{"status": "ok"}')


def test_a_body_that_never_arrives_is_an_error(serving, alphabet, impatient):
    with serving(alphabet) as server:
        reply = exchange(server, completion(ENDLESS)[:-5])
        assert reply.startswith(b"HTTP/1.1 408 Request Timeout") and b"did not arrive in time" in reply


def test_a_client_that_does_not_read_is_dropped(serving, alphabet, impatient):
    with serving(alphabet) as server, connect(server) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)  # several megabytes of pages
        state = server._uvicorn.server_state
        assert eventually(lambda: state.total_requests > 0 and not state.connections and not state.tasks)
        assert state.total_requests < 1000


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\nA: b\r\n\r\n", 400, "illegal header line"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", 400, "Found multiple Host: headers"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "Missing mandatory Host: header"),
        (b"GET / HTTP/1.0\r\n\r\n", 421, "Host: '' is not this machine"),
        (completion({}, "Content-Length: 3"), 400, "conflicting Content-Length headers"),
        (completion({}, "Transfer-Encoding: chunked"), 400, "not allowed together with Transfer-Encoding"),
        (completion({}, "Transfer-Encoding: gzip"), 501, "Transfer-Encoding"),
        (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "illegal request line"),
        (b"foo\r\n\r\n", 400, "the request is not HTTP: illegal request line: 'foo'"),
        (b"'%b\"\r\n\r\n" % (b"\xff" * 1000), 400, r"illegal request line: '\'ÿÿ"),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\nConnection: close\r\n\r\n", 505, "expected HTTP 1.1 or 1.0, got 9.9"),
        (b"GET / HTTP/0.9\r\nHost: localhost\r\n\r\n", 505, "expected HTTP 1.1 or 1.0, got 0.9"),
        (b"\x16\x03\x01\x00\xf4\x01\r\n\r\n", 400, "illegal request line"),
        (b"PRI * HTTP/2.0\r\nHost: localhost\r\nConnection: close\r\n\r\n", 501, "Unsupported method ('PRI')"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 2_000_000 + b"\r\n\r\n", 431, "too long"),
        (b"GET /" + b"a" * 2_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431, "too long"),
    ],
)
def test_malformed_requests_are_refused(server, request_, status, message):
    head, _, body = exchange(server, request_).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    for header in (b"content-type: application/json", b"x-content-type-options: nosniff", b"cache-control: no-store"):
        assert header in head.lower().split(b"\r\n")
    assert message in json.loads(body)["error"]["message"]


def test_a_body_may_be_chunked(server):
    head, _, body = completion({"prompt": "v", "temperature": 0}, "Connection: close").partition(b"Content-Length")
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    body = body.partition(b"\r\n\r\n")[2]

    def chunk(data: bytes) -> bytes:
        return b"%x;name=value\r\n%b\r\n" % (len(data), data)

    end = b"0\r\nTrailer: x\r\n\r\n"
    assert b'"text": "wxyz"' in exchange(server, head + chunk(body[:9]) + chunk(body[9:]) + end)
    reply = exchange(server, head + chunk(body) + b"no number\r\n")
    assert reply.startswith(b"HTTP/1.1 400 ") and b"the request is not HTTP: illegal chunk header" in reply
    reply = exchange(server, head + chunk(b"a" * 1024) * 5 + end)
    assert reply.startswith(b"HTTP/1.1 413 ") and b"expected a body of at most 4,096 bytes, got 5120" in reply


def test_a_client_may_wait_for_permission_to_send_the_body(server):
    with connect(server) as client:
        head, _, body = completion({"prompt": "y"}, "Expect: 100-continue", "Connection: close").partition(b"\r\n\r\n")
        client.sendall(head + b"\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 100 ")
        client.sendall(body)
        assert b'"text": "z' in read_all(client)


def test_requests_may_be_sent_ahead(server):
    last = completion({"prompt": "w", "temperature": 0}, "Connection: close")
    reply = exchange(server, completion({"prompt": "v", "temperature": 0}) + completion({}) + last)
    assert [part.partition(b" ")[0] for part in reply.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400", b"200"]
    assert b'"text": "wxyz"' in reply and reply.endswith(b"}") and b'"text": "xyz"' in reply


def test_idle_connections_need_no_threads(server):
    before = threading.active_count()
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connect(server))
        state = server._uvicorn.server_state
        assert eventually(lambda: len(state.connections) == 300)
        assert threading.active_count() == before
        assert b'{"status": "ok"}' in exchange(
            server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )


def test_every_token_is_sent_immediately(server):
    with connect(server) as client:
        client.sendall(b"GET")
        connections = server._uvicorn.server_state.connections
        assert eventually(lambda: len(connections) == 1)
        (accepted,) = connections
        assert accepted.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_too_many_connections_are_reported_in_one_line(capsys):
    loop = asyncio.new_event_loop()
    error = OSError(errno.EMFILE, "Too many open files")
    report(loop, {"message": "socket.accept() out of system resource", "exception": error})
    loop.close()
    assert capsys.readouterr().err == (
        "warning: socket.accept() out of system resource ([Errno 24] Too many open files)\n"
    )
