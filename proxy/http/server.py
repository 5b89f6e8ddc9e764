"""Serve metrics and health over HTTP, in the event loop that the proxy runs in.

    /metrics   Prometheus' text format, or OpenMetrics where it is asked for
    /healthz   alive: the event loop answers
    /readyz    can serve: 200, or 503 while it can't or is draining
    /health    the same with detail, as JSON

FastAPI and uvicorn are imported when a server starts, so that a proxy without HTTP doesn't carry them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from proxy import tasks
from proxy.errors import SluiceError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn import Server

log = logging.getLogger(__name__)

# What a browser needs to be told about plain data; a page that needs more sets its own headers.
SECURITY_HEADERS: Final = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
}
# Connections at a time, far above what scrapes and probes need: more are answered 503.
_MAX_CONNECTIONS: Final = 100
_CLOSE_TIMEOUT: Final = 2

RenderMetrics = Callable[[str], tuple[bytes, str]]
Ready = Callable[[], bool]
Health = Callable[[], Mapping[str, object]]


class HttpBindError(SluiceError):
    """The HTTP port can't be listened on; the message names it and the reason."""


class HttpServer:
    """A running server. `port` is the one that was bound, also where 0 was asked for."""

    def __init__(self, server: Server, sockets: list[socket.socket], task: asyncio.Task[None]) -> None:
        self.host: str = sockets[0].getsockname()[0]
        self.port: int = sockets[0].getsockname()[1]
        self._server = server
        self._task = task

    async def close(self) -> None:
        """Stop listening, let answers that have begun finish for two seconds, and wait for the end."""
        self._server.should_exit = True
        await asyncio.wait({self._task})


async def start(
    host: str, port: int, render_metrics: RenderMetrics, ready: Ready, health: Health
) -> HttpServer:
    """Listen on each address of `host` and serve.

    `render_metrics` gets the header Accept and returns body and content type; `health` returns what JSON can
    hold. Raises HttpBindError.
    """
    from uvicorn import Config, Server

    class QuietServer(Server):
        """Leaves the signals to the proxy."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = Config(
        with_security_headers(make_app(render_metrics, ready, health)),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_CLOSE_TIMEOUT,
    )
    sockets = await _listen(host, port)
    server = QuietServer(config)
    running = HttpServer(server, sockets, tasks.spawn(server.serve(sockets), "http server"))
    shown = f"[{running.host}]" if ":" in running.host else running.host
    log.info("metrics and health on http://%s:%d", shown, running.port)
    return running


def make_app(render_metrics: RenderMetrics, ready: Ready, health: Health) -> FastAPI:
    """Return the application, for `start` and for tests; without pages of documentation."""
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse, PlainTextResponse, Response
    from starlette.requests import Request

    app = FastAPI(title="pgsluice", docs_url=None, redoc_url=None, openapi_url=None)

    async def metrics(request: Request) -> Response:
        body, content_type = render_metrics(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def alive() -> Response:
        return PlainTextResponse("ok\n")

    async def readiness() -> Response:
        return PlainTextResponse("ready\n") if ready() else PlainTextResponse("not ready\n", 503)

    async def detail() -> Response:
        return JSONResponse(dict(health()), 200 if ready() else 503)

    routes: dict[str, Callable[..., Any]] = {
        "/metrics": metrics,
        "/healthz": alive,
        "/readyz": readiness,
        "/health": detail,
    }
    for path, endpoint in routes.items():
        # Load balancers probe with HEAD too.
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], response_class=Response)
    return app


def with_security_headers(app: ASGIApp) -> ASGIApp:
    """Return `app` with SECURITY_HEADERS added to each answer, but for those that it sets itself."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers: list[tuple[bytes, bytes]] = list(message.get("headers", ()))
                present = {name.lower() for name, _ in headers}
                headers += [item for item in SECURITY_HEADERS.items() if item[0] not in present]
                message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive, send_more)

    return wrapped


async def _listen(host: str, port: int) -> list[socket.socket]:
    """Return a listening socket for each address of `host`, all on one port. Raises HttpBindError."""
    sockets: list[socket.socket] = []
    try:
        found: list[tuple[Any, ...]] = await asyncio.get_running_loop().getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, _, _, _, address in dict.fromkeys(found):
            if sockets and port == 0:
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            sockets.append(socket.create_server(address, family=family, backlog=128))
    except OSError as error:
        for listening in sockets:
            listening.close()
        raise HttpBindError(f"http: can't listen on {host}:{port}: {error.strerror or error}") from error
    return sockets
