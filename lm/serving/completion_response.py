"""Send the response to a completion request while its texts are generated: one object, or a stream of events.

The engine's thread notifies the event loop about new tokens. No other thread is needed, however many clients wait.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lm.serving.completion import Chunk, Completion
from lm.serving.completion_request import ApiError, CompletionRequest
from lm.serving.engine import Busy, Engine, Stopped, TokenStream
from lm.serving.limits import Limits


def json_response(
    value: dict[str, Any], status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response in ASCII: errors may quote half of a surrogate pair, which UTF-8 cannot represent."""
    return Response(json.dumps(value), status, headers, "application/json")


class CompletionResponse(Response):
    """Generates the texts of a completion and sends them. If the client disconnects, the texts are canceled.

    Raises, when it is called:
        ApiError: there is no room for the texts, they took longer than the time limit, or the model diverged. A stream
            that has begun contains the error instead.
        ClientDisconnect: the client has disconnected.
    """

    def __init__(self, request: CompletionRequest, completion: Completion, engine: Engine, limits: Limits) -> None:
        super().__init__()
        self._request, self._completion, self._engine, self._limits = request, completion, engine, limits
        self._is_disconnected = False
        self._changed = asyncio.Event()  # there are new tokens, the client has disconnected, or the time is over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.seconds
        timer = loop.call_at(deadline, self._changed.set)
        watcher = asyncio.create_task(self._watch(receive))
        is_urgent = self._request.stream or bool(self._request.stop)

        def on_tokens(has_ended: bool) -> None:
            # Waking up the event loop for every token would slow down the engine, which shares the interpreter's lock.
            if is_urgent or has_ended:
                loop.call_soon_threadsafe(self._changed.set)

        try:
            with self._engine.submit(self._completion.requests, on_tokens) as stream:
                chunks = self._chunks(stream, deadline)
                if self._request.stream:
                    await self._send_events(chunks, send)
                else:
                    response = json_response(self._completion.join([chunk async for chunk in chunks]))
                    await response(scope, receive, send)
        except Busy as error:
            rows, waiting = self._limits.rows, self._limits.waiting
            raise _unavailable(
                f"the server is busy: it generates {rows} texts at a time, and {waiting} may wait"
            ) from error
        except Stopped as error:
            raise _shutting_down() from error
        finally:
            timer.cancel()
            watcher.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._is_disconnected = True
        self._changed.set()

    async def _chunks(self, stream: TokenStream, deadline: float) -> AsyncIterator[Chunk]:
        """Yield the chunks of the response."""
        completion, limit = self._completion, self._limits.seconds
        has_begun = False
        while not completion.is_finished:
            await self._changed.wait()
            self._changed.clear()
            if self._is_disconnected:
                raise ClientDisconnect
            for index, token in stream.arrived():
                has_begun = True
                chunk = completion.feed(index, token)
                if completion.has_finished(index):
                    stream.cancel(index)  # after a stop string, which the engine does not know about
                if chunk:
                    yield chunk
            if asyncio.get_running_loop().time() >= deadline and not completion.is_finished:
                if has_begun:
                    message = f"max_tokens: the texts were not finished within {limit:g} seconds; ask for fewer tokens"
                    raise ApiError(message, param="max_tokens")
                raise _unavailable(f"the server is busy: no row was free within {limit:g} seconds")

    async def _send_events(self, chunks: AsyncIterator[Chunk], send: Send) -> None:
        """Send server-sent events. The headers are sent with the first one, so earlier errors can set the status."""
        has_started = False

        async def send_event(data: str) -> None:
            nonlocal has_started
            if not has_started:
                has_started = True
                headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
                await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": headers})
            await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})

        try:
            async for chunk in chunks:
                await send_event(json.dumps(chunk))
            if self._request.include_usage:
                await send_event(json.dumps(self._completion.usage_chunk()))
            await send_event("[DONE]")
        except (ApiError, Stopped, ClientDisconnect) as error:
            if not has_started:
                raise
            if not isinstance(error, ClientDisconnect):
                body = _shutting_down().body if isinstance(error, Stopped) else error.body
                await send_event(json.dumps(body))
        await send({"type": "http.response.body", "body": b""})


def _unavailable(message: str) -> ApiError:
    return ApiError(f"{message}; try again later", HTTPStatus.SERVICE_UNAVAILABLE, headers={"Retry-After": "1"})


def _shutting_down() -> ApiError:
    return _unavailable("the server is shutting down")
