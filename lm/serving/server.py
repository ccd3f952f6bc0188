"""The HTTP server: uvicorn, which runs the application of app.py on an event loop in one thread.

Only the engine's thread uses the model. A request waits for its tokens without a thread of its own, so that many
clients cost little.
"""

import asyncio
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import uvicorn

from lm.errors import UserError, quote
from lm.serving.app import SECURITY_HEADERS, create_app, is_loopback
from lm.serving.connection import Connection
from lm.serving.engine import Engine
from lm.serving.served_model import ServedModel

_BACKLOG = 128  # connections that wait to be accepted

# One line on stderr for each request, and failures of the application itself, which are bugs, with their traceback.
_LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(message)s", "datefmt": "%H:%M:%S"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "uvicorn.access": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "uvicorn.error": {"handlers": ["stderr"], "level": "ERROR", "propagate": False},
    },
}


class Server:
    """Responds to the requests that arrive at the socket `listener` while `run` runs."""

    def __init__(self, host: str, listener: socket.socket, served: ServedModel, engine: Engine) -> None:
        self.server_port: int = listener.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"
        self.is_local = is_loopback(host)
        self.served = served
        self.engine = engine
        self._listener = listener
        config = uvicorn.Config(
            create_app(served, engine, self.url, self.is_local),
            http=Connection,
            loop="asyncio",
            backlog=_BACKLOG,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=_LOGGING,
            proxy_headers=False,
            server_header=False,
            headers=list(SECURITY_HEADERS.items()),
        )
        self._uvicorn = _Uvicorn(config, engine)

    def run(self) -> None:
        """Respond to requests until `stop`.

        Raises:
            KeyboardInterrupt: by Ctrl-C, after the clients have been told.
        """
        asyncio.run(self._run())

    def stop(self) -> None:
        """Make `run` return; another thread may call this."""
        self._uvicorn.should_exit = True

    async def _run(self) -> None:
        asyncio.get_running_loop().set_exception_handler(report)
        await self._uvicorn.serve([self._listener])


@contextmanager
def open_server(host: str, port: int, served: ServedModel) -> Iterator[Server]:
    """Create a server, which already listens, and its engine, and close both at the end of the `with` block.

    Port 0 picks a free port, which is then in `server_port`.

    Raises:
        UserError: the server cannot listen at this address, or the memory is too small for the engine.
    """
    limits = served.limits
    with (
        _listen(host, port) as listener,
        Engine(served.model, limits.rows, limits.waiting, limits.context_length) as engine,
    ):
        yield Server(host, listener, served, engine)


def serve(server: Server) -> None:
    """Print the address, and serve until Ctrl-C."""
    print(f"serving {server.served.name} at {server.url}, API at {server.url}v1; press Ctrl-C to stop", flush=True)
    if not server.is_local:
        print("warning: anyone who can reach this address can use the server; it has no password", file=sys.stderr)
    with suppress(KeyboardInterrupt):
        server.run()
    print("\nstopped", file=sys.stderr)


class _Uvicorn(uvicorn.Server):
    """uvicorn's server, which stops the engine first, so that clients do not wait for their texts."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.stop()
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    if not host:
        raise UserError(
            "--host: expected an address, got ''; use 127.0.0.1 for this machine only, or 0.0.0.0 for all networks"
        )
    if not 0 <= port <= 65_535:
        raise UserError(f"--port: expected 0 to 65535, got {quote(port)}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends each token immediately (TCP_NODELAY) only if the protocol is named here.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, TypeError, ValueError) as error:  # the last two for an invalid host name
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{host}:{port}: cannot listen ({reason}); choose another --port or --host") from error
    return listener


def report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report an error outside of a request, such as too many open connections, in one line if it is not a bug."""
    if isinstance(context.get("exception"), OSError):
        _warn_once(f"{context['message']} ({context['exception']})")
    else:
        loop.default_exception_handler(context)


@cache
def _warn_once(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
