"""The HTTP server: OpenAI's `/v1/completions` and `/v1/models`, and the page at `/`.

It builds on the standard library's server, with one thread per connection: requests mostly wait for tokens, and no
package is needed. Only the engine's thread uses the model.

Two checks protect a server on a loopback address from other web sites that are open in the user's browser. The Host
header must name this machine, so that a site cannot read responses by pointing its own domain name here (DNS
rebinding). And a request body must be application/json, which browsers do not send to another site without its
permission.
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
from typing import Any
from urllib.parse import urlsplit

from lm.errors import UserError
from lm.serving.completion import Chunk, Completion
from lm.serving.completion_request import ApiError, parse
from lm.serving.engine import Busy, Engine, Stopped, TokenStream
from lm.serving.page import Page
from lm.serving.served_model import ServedModel

POLL_SECONDS = 0.25  # how often to check whether the client has disconnected while waiting for a token
STALL_SECONDS = 30.0  # a connection is considered dead if no byte is read or written for this long


class Server(ThreadingHTTPServer):
    """Listens as soon as it is created, and responds while `serve_forever` runs.

    Raises:
        OSError: it cannot listen at this address.
        OverflowError: there is no such port.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, served: ServedModel, engine: Engine) -> None:
        is_v6 = ":" in host
        self.address_family = socket.AF_INET6 if is_v6 else socket.AF_INET
        super().__init__((host, port), Handler)
        self.is_local = is_loopback(host)
        self.url = f"http://{f'[{host}]' if is_v6 else host}:{self.server_port}/"
        self.created = int(time.time())
        self.served = served
        self.engine = engine
        self.page = Page(served)


@contextmanager
def open_server(host: str, port: int, served: ServedModel) -> Iterator[Server]:
    """Create a server and its engine, and close both at the end of the `with` block.

    Port 0 picks a free port, which is then in `server_port`.

    Raises:
        UserError: the server cannot listen at this address.
    """
    if not host:
        raise UserError(
            "--host: expected an address, got ''; use 127.0.0.1 for this machine only, or 0.0.0.0 for all networks"
        )
    with Engine(served.model, served.limits.rows, served.limits.waiting) as engine:
        try:
            server = Server(host, port, served, engine)
        except (OSError, OverflowError, TypeError, UnicodeError) as error:  # the last two for an invalid host name
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{host}:{port}: cannot listen ({reason}); choose another --port or --host") from error
        with server:
            yield server


def serve(server: Server) -> None:
    """Print the address, and serve until Ctrl-C."""
    print(f"serving {server.served.name} at {server.url}, API at {server.url}v1; press Ctrl-C to stop", flush=True)
    if not server.is_local:
        print("warning: anyone who can reach this address can use the server; it has no password", file=sys.stderr)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without a port, refers to this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Handler(BaseHTTPRequestHandler):
    """Handles one connection, which may send several requests in sequence."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "lm", ""
    timeout = STALL_SECONDS
    disable_nagle_algorithm = True  # send each token immediately

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # the client has disconnected
            self.close_connection = True

    def do_GET(self) -> None:
        self._is_streaming = False
        try:
            self._respond()
        except ApiError as error:
            self._send_api_error(error)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send the errors of the base class, such as a malformed request line, in the same format as all others."""
        self.close_connection = True
        status = HTTPStatus(code)
        self._send_json(ApiError(message or status.phrase, status).body, status)

    def _respond(self) -> None:
        body = self._read_body()
        host = self.headers.get("Host", "")
        if self.server.is_local and not is_loopback(_host_name(host)):
            message = f"Host: {host!r} is not this machine; use {self.server.url}"
            raise ApiError(message, HTTPStatus.MISDIRECTED_REQUEST)
        path = self.path.partition("?")[0]
        routes = {
            "/": ("GET", self._send_page),
            "/v1/models": ("GET", self._send_models),
            "/v1/completions": ("POST", lambda: self._complete(body)),
        }
        if path not in routes:
            raise ApiError(f"{path}: not found; the paths are {', '.join(routes)}", HTTPStatus.NOT_FOUND)
        method, action = routes[path]
        if ("GET" if self.command == "HEAD" else self.command) != method:
            raise ApiError(
                f"{path}: expected {method}, got {self.command}",
                HTTPStatus.METHOD_NOT_ALLOWED,
                headers={"Allow": method},
            )
        action()

    def _read_body(self) -> bytes:
        """Read the whole body before anything else: bytes left unread would be taken for the next request."""
        limit = self.server.served.limits.request_bytes
        length = self.headers.get("Content-Length", "0")
        close_after_response, self.close_connection = self.close_connection, True  # until all of it is read
        if "Transfer-Encoding" in self.headers:
            raise ApiError("Content-Length: missing; chunked bodies are not supported", HTTPStatus.LENGTH_REQUIRED)
        if not (length.isascii() and length.isdecimal()):
            raise ApiError(f"Content-Length: expected a number, got {length!r}")
        if len(length) > 18 or int(length) > limit:
            message = f"expected a body of at most {limit:,} bytes, got {length}"
            raise ApiError(message, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionAbortedError("the client disconnected before it sent the whole request")
        self.close_connection = close_after_response
        return body

    def _send_page(self) -> None:
        html, policy = self.server.page.render()
        self._send(html.encode(), "text/html; charset=utf-8", HTTPStatus.OK, {"Content-Security-Policy": policy})

    def _send_models(self) -> None:
        model = {"id": self.server.served.name, "object": "model", "created": self.server.created, "owned_by": "lm"}
        self._send_json({"object": "list", "data": [model]})

    def _complete(self, body: bytes) -> None:
        served, engine = self.server.served, self.server.engine
        kind = self.headers.get_content_type()
        if kind != "application/json":
            message = f"Content-Type: expected application/json, got {kind}"
            raise ApiError(message, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        request = parse(body, served.name, served.limits)
        completion = Completion(request, served.name, served.tokenizer, engine.context_length)
        try:
            with engine.submit(completion.requests) as stream:
                chunks = self._chunks(completion, stream)
                if not request.stream:
                    self._send_json(completion.join(chunks))
                    return
                for chunk in chunks:
                    self._send_event(chunk)
        except Busy as error:
            limits = served.limits
            raise _unavailable(
                f"the server is busy: it generates {limits.rows} texts at a time, and {limits.waiting} may wait"
            ) from error
        except Stopped as error:
            raise _unavailable("the server is shutting down") from error
        if request.include_usage:
            self._send_event(completion.usage_chunk())
        self.wfile.write(b"data: [DONE]\n\n")

    def _chunks(self, completion: Completion, stream: TokenStream) -> Iterator[Chunk]:
        """Yield the chunks of the response.

        Raises:
            ApiError: the texts took longer than the time limit.
            ConnectionAbortedError: the client has disconnected.
        """
        has_begun = False
        limit = self.server.served.limits.seconds
        deadline = time.monotonic() + limit
        while not completion.is_finished:
            if time.monotonic() > deadline:
                if has_begun:
                    message = f"max_tokens: the texts were not finished within {limit:g} seconds; ask for fewer tokens"
                    raise ApiError(message, param="max_tokens")
                raise _unavailable(f"the server is busy: no row was free within {limit:g} seconds")
            if self._client_has_disconnected():
                raise ConnectionAbortedError("the client has disconnected")
            try:
                index, token = stream.get(POLL_SECONDS)
            except TimeoutError:
                continue
            has_begun = True
            chunk = completion.feed(index, token)
            if completion.has_finished(index):
                stream.cancel(index)  # after a stop string, which the engine does not know about
            if chunk:
                yield chunk

    def _client_has_disconnected(self) -> bool:
        self.connection.settimeout(0)
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        finally:
            self.connection.settimeout(self.timeout)

    def _send_event(self, value: dict[str, Any]) -> None:
        """Send a server-sent event. The headers are sent with the first one, so earlier errors can set the status."""
        if not self._is_streaming:
            self._is_streaming = True
            self.close_connection = True  # closing the connection marks the end of the stream
            self._send_headers(HTTPStatus.OK, {"Content-Type": "text/event-stream; charset=utf-8"})
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _send_api_error(self, error: ApiError) -> None:
        if self._is_streaming:
            self._send_event(error.body)
            return
        self._send_json(error.body, error.status, error.headers)
        if self.close_connection:
            self._discard_input()

    def _discard_input(self) -> None:
        """Read what the client still sends: closing a connection with unread bytes would discard the response."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(1.0)
        for _ in range(256):
            if not self.rfile.read1(1 << 16):
                return

    def _send_json(
        self, value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
    ) -> None:
        self._send(json.dumps(value).encode(), "application/json", status, headers or {})

    def _send(self, body: bytes, kind: str, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self._send_headers(status, {"Content-Type": kind, "Content-Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_headers(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        security = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        for name, value in {**headers, **security}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()


def _host_name(host: str) -> str:
    """Return the host name or address in a Host header, or an empty string if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _unavailable(message: str) -> ApiError:
    return ApiError(f"{message}; try again later", HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": "1"})
