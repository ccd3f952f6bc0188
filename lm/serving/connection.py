"""uvicorn's connections, with the protection that a server needs if strangers can reach it.

uvicorn has no time limit for a request that never becomes complete or a response that nobody reads, closes a connection
as soon as the client has closed its sending side, and reports malformed requests as plain text.
"""

import ast
import asyncio
import json
import re
import socket
import sys
from contextlib import suppress
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lm.errors import quote
from lm.serving.app import STALL_SECONDS
from lm.serving.completion_request import ApiError

POLL_SECONDS = 0.25  # how often to check whether a client that sends nothing more is still there
LINGER_SECONDS = 1.0  # how long to read on after a malformed request
SHUTDOWN_SECONDS = 5.0  # how long clients have to read the end of their responses when the server stops


class Connection(H11Protocol):
    """A connection to a client. uvicorn creates one for each."""

    _last_data = b""  # received last
    _is_discarding = False  # after a malformed request
    _abort_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # The base class starts this timer after each response, to close a connection without a further request.
        self.timeout_keep_alive = STALL_SECONDS  # type: ignore[assignment]  # fractions work, too
        self.timeout_keep_alive_task = self.loop.call_later(STALL_SECONDS, self.timeout_keep_alive_handler)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._unset_keepalive_if_required()
        self._cancel_abort()

    def data_received(self, data: bytes) -> None:
        # Unlike in the base class, the first bytes do not stop the timer, only the end of the headers does.
        if not self._is_discarding:
            self._last_data = data
            self.conn.receive_data(data)
            self.handle_events()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection open if there is a response to send: the client may still read.

        It may also be gone, which looks the same. HTTP allows interim responses at any time before the response, and
        clients ignore "100 Continue". If the client is gone, its system refuses the data.
        """
        cycle = self.cycle
        if self._is_discarding or cycle is None or cycle.response_complete or cycle.more_body:
            return False
        cycle.keep_alive = False
        if not cycle.response_started and cycle.scope["http_version"] == "1.1":
            interim = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            self.transport.write(self.conn.send(interim) or b"")
        self._check_client()
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_in(STALL_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_in(STALL_SECONDS)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():  # closing would wait for a client that does not read
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Report a malformed request. The base class calls this while it handles h11's exception."""
        self._unset_keepalive_if_required()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # there has been a response
            self.transport.close()
            return
        self._is_discarding = True
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        error = self._describe(sys.exc_info()[1])
        body = json.dumps(error.body).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=error.status, headers=headers, reason=error.status.phrase.encode())
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        # Closing a connection with unread bytes would discard the response, so read what the client still sends.
        with suppress(OSError):  # the client has disconnected
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def shutdown(self) -> None:
        if self._is_discarding or (self.cycle and self.cycle.more_body):
            self.transport.abort()
        else:
            super().shutdown()
            self._abort_in(SHUTDOWN_SECONDS)

    def _check_client(self) -> None:
        """Close the connection if the client is gone; check again until the response is complete."""
        if self.transport.is_closing():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(POLL_SECONDS, self._check_client)

    def _abort_in(self, seconds: float) -> None:
        self._cancel_abort()
        self._abort_timer = self.loop.call_later(seconds, self.transport.abort)

    def _cancel_abort(self) -> None:
        if self._abort_timer:
            self._abort_timer.cancel()

    def _describe(self, error: BaseException | None) -> ApiError:
        length = re.search(rb"(?i)\ncontent-length:[ \t]*([^\r\n]*)", self._last_data)
        if length and str(error) == "bad Content-Length":
            given = length[1].decode("latin-1")
            if given.isdecimal():
                return ApiError(f"expected a shorter body, got {given} bytes", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return ApiError(f"Content-Length: expected a number, got {quote(given)}")
        status = getattr(error, "error_status_hint", HTTPStatus.BAD_REQUEST)
        # h11 quotes a line as it stores it, such as bytearray(b'GET').
        reason = re.sub(
            r"bytearray\((b.*)\)", lambda line: quote(ast.literal_eval(line[1]).decode("latin-1")), str(error)
        )
        return ApiError(f"the request is not HTTP: {reason}", HTTPStatus(status))
