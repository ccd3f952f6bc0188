"""The web server: OpenAI's `/v1/completions` and `/v1/models`, and the page at `/`.

It is the standard library's: a thread a connection suits requests that wait for tokens most of their time, and needs no
package. Only the engine's thread touches the model.

On a loopback address it answers only to the names of this machine: a page of another site, whose name was made to point
here (DNS rebinding), is refused, and so is a body that a browser would send for any site without asking (it must be
application/json).
"""

import ipaddress
import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lm.errors import UserError
from lm.generation.config import SampleConfig
from lm.model.transformer import TransformerLM
from lm.serving.completion import Chunk, Completion
from lm.serving.completion_request import ApiError, Limits, parse
from lm.serving.engine import Answer, Busy, Engine, Stopped
from lm.serving.page import Page
from lm.tokenizer.tokenizer import Tokenizer

POLL_SECONDS = 0.25  # how soon it is seen that a client has gone while no token comes
STALL_SECONDS = 30.0  # without a byte read or written, before a connection counts as dead


class Server(ThreadingHTTPServer):
    """Listens from the moment it is made; `serve_forever` answers. `name` is the model's in the API.

    Raises:
        OSError: it cannot listen there.
        OverflowError: there is no such port.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, host: str, port: int, name: str, engine: Engine, tokenizer: Tokenizer, page: Page, limits: Limits
    ) -> None:
        is_v6 = ":" in host
        self.address_family = socket.AF_INET6 if is_v6 else socket.AF_INET
        super().__init__((host, port), Handler)
        self.is_local = is_loopback(host)
        self.url = f"http://{f'[{host}]' if is_v6 else host}:{self.server_port}/"
        self.name = name
        self.created = int(time.time())
        self.engine = engine
        self.tokenizer = tokenizer
        self.page = page
        self.limits = limits


@contextmanager
def listening(
    host: str,
    port: int,
    name: str,
    model: TransformerLM,
    tokenizer: Tokenizer,
    start: SampleConfig,
    metrics: Path,
    limits: Limits,
) -> Iterator[Server]:
    """A server, and the engine behind it, until the block ends; `start` and `metrics` as in `Page`.

    Port 0 takes any that is free: `server_port` tells which.

    Raises:
        UserError: it cannot listen there.
    """
    page = Page(name, model, start, limits, metrics)
    if not host:
        raise UserError("--host: expected an address, got ''; 127.0.0.1 is this machine alone, 0.0.0.0 is everywhere")
    with Engine(model, limits.rows, limits.waiting) as engine:
        try:
            server = Server(host, port, name, engine, tokenizer, page, limits)
        except (OSError, OverflowError, TypeError, UnicodeError) as error:  # the last two of a name that is none
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"{host}:{port}: cannot listen there ({reason}); choose another --port or --host"
            ) from error
        with server:
            yield server


def serve(server: Server) -> None:
    """Say where to look, and answer until Ctrl-C."""
    print(f"{server.name}: {server.url}, the API: {server.url}v1; Ctrl-C ends it", flush=True)
    if not server.is_local:
        print("open to everyone who can reach this address: there is no password", file=sys.stderr)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("\nended", file=sys.stderr)


def is_loopback(host: str) -> bool:
    """Whether a name or an address, without a port, means this machine itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Handler(BaseHTTPRequestHandler):
    """One connection, with one request after the other."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "lm", ""
    timeout = STALL_SECONDS
    disable_nagle_algorithm = True  # a token is sent when it comes

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # the client has gone
            self.close_connection = True

    def do_GET(self) -> None:
        self._is_streaming = False
        try:
            self._answer()
        except ApiError as refusal:
            self._refuse(refusal)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses, such as a line that is no HTTP, in the form of all else."""
        self.close_connection = True
        status = HTTPStatus(code)
        self._send_json(ApiError(message or status.phrase, status).body, status)

    def _answer(self) -> None:
        body = self._body()
        host = self.headers.get("Host", "")
        if self.server.is_local and not is_loopback(_host_name(host)):
            message = f"Host: {host!r} is not this machine; ask for {self.server.url}"
            raise ApiError(message, HTTPStatus.MISDIRECTED_REQUEST)
        path = self.path.partition("?")[0]
        routes = {
            "/": ("GET", self._page),
            "/v1/models": ("GET", self._models),
            "/v1/completions": ("POST", lambda: self._completions(body)),
        }
        if path not in routes:
            raise ApiError(f"{path}: nothing is here; there are {', '.join(routes)}", HTTPStatus.NOT_FOUND)
        method, action = routes[path]
        if ("GET" if self.command == "HEAD" else self.command) != method:
            raise ApiError(
                f"{path}: takes {method}, got {self.command}", HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": method}
            )
        action()

    def _body(self) -> bytes:
        """The whole of it, before anything else: what is left unread would be taken for the next request."""
        limit = self.server.limits.request_bytes
        length = self.headers.get("Content-Length", "0")
        closes, self.close_connection = self.close_connection, True  # unless all of it is read
        if "Transfer-Encoding" in self.headers:
            raise ApiError("Content-Length: missing; a body in chunks is not taken", HTTPStatus.LENGTH_REQUIRED)
        if not (length.isascii() and length.isdecimal()):
            raise ApiError(f"Content-Length: expected a number, got {length!r}")
        if len(length) > 18 or int(length) > limit:
            message = f"the body has {length} bytes; at most {limit:,} are taken"
            raise ApiError(message, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionAbortedError("the client has gone before its request was whole")
        self.close_connection = closes
        return body

    def _page(self) -> None:
        html, policy = self.server.page.render()
        self._send(html.encode(), "text/html; charset=utf-8", HTTPStatus.OK, {"Content-Security-Policy": policy})

    def _models(self) -> None:
        model = {"id": self.server.name, "object": "model", "created": self.server.created, "owned_by": "lm"}
        self._send_json({"object": "list", "data": [model]})

    def _completions(self, body: bytes) -> None:
        server = self.server
        kind = self.headers.get_content_type()
        if kind != "application/json":
            message = f"Content-Type: expected application/json, got {kind}"
            raise ApiError(message, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        asked = parse(body, server.name, server.limits)
        completion = Completion(asked, server.name, server.tokenizer, server.engine.context_length)
        try:
            with server.engine.submit(completion.requests) as answer:
                chunks = self._chunks(completion, answer)
                if not asked.stream:
                    self._send_json(completion.whole(chunks))
                    return
                for chunk in chunks:
                    self._send_event(chunk)
        except Busy as error:
            raise _try_later(f"{server.limits.rows} texts grow, and {server.limits.waiting} may wait") from error
        except Stopped as error:
            raise _try_later("the server is ending") from error
        if asked.include_usage:
            self._send_event(completion.last_chunk())
        self.wfile.write(b"data: [DONE]\n\n")

    def _chunks(self, completion: Completion, answer: Answer) -> Iterator[Chunk]:
        """The reply as it grows, for as long as the client is there and its time lasts."""
        begun = False
        end = time.monotonic() + self.server.limits.seconds
        while not completion.is_finished:
            if time.monotonic() > end:
                seconds = f"{self.server.limits.seconds:g} seconds"
                if begun:
                    raise ApiError(f"max_tokens: the texts take over {seconds}; ask for less", param="max_tokens")
                raise _try_later(f"no turn within {seconds}")
            if self._client_is_gone():
                raise ConnectionAbortedError("the client has gone")
            try:
                index, token = answer.get(POLL_SECONDS)
            except TimeoutError:
                continue
            begun = True
            chunk = completion.feed(index, token)
            if completion.has_finished(index):
                answer.end(index)  # a stop string: the engine knows nothing of it
            if chunk:
                yield chunk

    def _client_is_gone(self) -> bool:
        self.connection.settimeout(0)
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        finally:
            self.connection.settimeout(self.timeout)

    def _send_event(self, value: dict[str, Any]) -> None:
        """One of server-sent events; the first comes with the headers, so what fails before it has a status."""
        if not self._is_streaming:
            self._is_streaming = True
            self.close_connection = True  # the end of the connection is the end of the stream
            self._send_headers(HTTPStatus.OK, {"Content-Type": "text/event-stream; charset=utf-8"})
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _refuse(self, refusal: ApiError) -> None:
        if self._is_streaming:
            self._send_event(refusal.body)
            return
        self._send_json(refusal.body, refusal.status, refusal.headers)
        if self.close_connection:
            self._swallow()

    def _swallow(self) -> None:
        """Read on for a while: a connection closed on bytes unread is reset, and the client never sees why."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(1.0)
        for _ in range(256):
            if not self.rfile.read1(1 << 16):
                return

    def _send_json(
        self, value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] = {}
    ) -> None:
        self._send(json.dumps(value).encode(), "application/json", status, headers)

    def _send(self, body: bytes, kind: str, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self._send_headers(status, {"Content-Type": kind, "Content-Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_headers(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        always = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        for name, value in {**headers, **always}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()


def _host_name(host: str) -> str:
    """The name or address in a Host header."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _try_later(message: str) -> ApiError:
    return ApiError(f"{message}; try again later", HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": "1"})
