"""The application: what the server responds to each request. It speaks ASGI, the interface of Python's web servers.

    /                   the page to try the model on
    /v1/completions     OpenAI's completions
    /v1/models          the models, of which there is one; also /v1/models/NAME
    /health             whether the server works

All errors have OpenAI's format.

Two checks protect a server on a loopback address from other web sites that are open in the user's browser. The Host
header must name this machine, so that a site cannot read responses by pointing its own domain name here (DNS
rebinding). And a request body must be application/json, which browsers do not send to another site without its
permission.
"""

import asyncio
import ipaddress
import time
from email.message import Message
from http import HTTPMethod, HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lm.errors import quote
from lm.serving.completion import Completion
from lm.serving.completion_request import ApiError, parse
from lm.serving.completion_response import CompletionResponse, json_response
from lm.serving.engine import Engine
from lm.serving.page import Page
from lm.serving.served_model import ServedModel

STALL_SECONDS = 30.0  # a client is considered dead if it needs longer to send a request or to read what was sent
SECURITY_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def create_app(served: ServedModel, engine: Engine, url: str, is_local: bool) -> Starlette:
    """Create the application for a server at `url`, which accepts only the names of this machine if `is_local`."""
    endpoints = _Endpoints(served, engine)
    app = Starlette(
        routes=[
            Route("/", endpoints.page),
            Route("/v1/models", endpoints.models),
            Route("/v1/completions", endpoints.complete, methods=["POST"]),
            Route("/v1/models/{name}", endpoints.model),
            Route("/health", endpoints.health),
        ],
        middleware=[Middleware(_Guard, url=url, is_local=is_local)],
        exception_handlers={
            ApiError: _respond_api_error,
            HTTPException: _respond_http_error,
            ClientDisconnect: _respond_nothing,
            Exception: _respond_internal_error,
        },
    )
    app.router.redirect_slashes = False
    return app


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without a port, refers to this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def error_response(error: ApiError) -> Response:
    """Return the response that reports an error."""
    return json_response(error.body, error.status, error.headers)


class _Endpoints:
    """The functions that respond to the requests of each path."""

    def __init__(self, served: ServedModel, engine: Engine) -> None:
        self._served, self._engine = served, engine
        self._page = Page(served)
        self._model = {"id": served.name, "object": "model", "created": int(time.time()), "owned_by": "lm"}

    async def page(self, request: Request) -> Response:
        html, policy = await run_in_threadpool(self._page.render)  # reads a file
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    async def models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self._model]})

    async def model(self, request: Request) -> Response:
        if request.path_params["name"] != self._served.name:
            message = f"expected {self._served.name!r}, got {quote(request.path_params['name'])}"
            raise ApiError(f"model: {message}", HTTPStatus.NOT_FOUND, param="model", code="model_not_found")
        return json_response(self._model)

    async def health(self, request: Request) -> Response:
        if not self._engine.is_running:
            raise ApiError("the server has stopped", HTTPStatus.SERVICE_UNAVAILABLE)
        return json_response({"status": "ok"})

    async def complete(self, request: Request) -> Response:
        served, engine = self._served, self._engine
        body = await _read_body(request, served.limits.request_bytes)
        kind = _media_type(request.headers.get("Content-Type", "text/plain"))
        if kind != "application/json":
            message = f"Content-Type: expected application/json, got {kind}"
            raise ApiError(message, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        parsed = parse(body, served.name, served.limits)
        completion = Completion(parsed, served.name, served.tokenizer, engine.context_length)
        return CompletionResponse(parsed, completion, engine, served.limits)


class _Guard:
    """Refuses requests that are malformed, or may come from another web site."""

    def __init__(self, app: ASGIApp, url: str, is_local: bool) -> None:
        self._app, self._url, self._is_local = app, url, is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(Request(scope))
        except ApiError as error:
            await error_response(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, request: Request) -> None:
        if request.method not in list(HTTPMethod):
            raise ApiError(f"Unsupported method ({quote(request.method)})", HTTPStatus.NOT_IMPLEMENTED)
        version = request.scope["http_version"]
        if not version.startswith("1."):
            raise ApiError(f"expected HTTP 1.1 or 1.0, got {version}", HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        if "Transfer-Encoding" in request.headers and "Content-Length" in request.headers:
            message = "Content-Length: not allowed together with Transfer-Encoding"
            raise ApiError(message, headers={"Connection": "close"})  # it is not clear where the next request begins
        host = request.headers.get("Host", "")
        if self._is_local and not is_loopback(_host_name(host)):
            message = f"Host: {quote(host)} is not this machine; use {self._url}"
            raise ApiError(message, HTTPStatus.MISDIRECTED_REQUEST)


async def _read_body(request: Request, limit: int) -> bytes:
    """Read the body of a request.

    Raises:
        ApiError: it has more than `limit` bytes, or it did not arrive in time.
        ClientDisconnect: the client has disconnected.
    """
    length = int(request.headers.get("Content-Length", 0))
    body = bytearray()
    try:
        async with asyncio.timeout(STALL_SECONDS):
            if length <= limit:
                async for chunk in request.stream():
                    body += chunk
                    length = max(length, len(body))
                    if length > limit:
                        break
    except TimeoutError as error:
        raise ApiError("the request did not arrive in time", HTTPStatus.REQUEST_TIMEOUT) from error
    if length > limit:
        message = f"expected a body of at most {limit:,} bytes, got {length}"
        raise ApiError(message, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return bytes(body)


def _media_type(content_type: str) -> str:
    """Return the media type of a Content-Type header without its parameters, in lower case."""
    message = Message()
    message["Content-Type"] = content_type
    return message.get_content_type()


def _host_name(host: str) -> str:
    """Return the host name or address in a Host header, or an empty string if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _respond_api_error(request: Request, error: Any) -> Response:
    return error_response(error)


async def _respond_http_error(request: Request, error: Any) -> Response:
    """Respond to a path that does not exist, or a method that it does not have."""
    path, status = request.scope["path"], HTTPStatus(error.status_code)
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = "POST" if "POST" in error.headers["Allow"] else "GET"
        message = f"{path}: expected {allowed}, got {request.method}"
        return error_response(ApiError(message, status, headers={"Allow": allowed}))
    paths = ", ".join(route.path.replace("{name}", "NAME") for route in request.app.routes)
    return error_response(ApiError(f"{path}: not found; the paths are {paths}", status))


async def _respond_nothing(request: Request, error: Exception) -> Response:
    return Response()  # the client has disconnected and does not see it


async def _respond_internal_error(request: Request, error: Exception) -> Response:
    return error_response(ApiError("the server has failed; its log says why", HTTPStatus.INTERNAL_SERVER_ERROR))
