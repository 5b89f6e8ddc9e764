"""Serve metrics and health over HTTP, in the event loop that the proxy runs in.

FastAPI and uvicorn, some 16 MiB, are imported when a server starts: a proxy without HTTP doesn't carry them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from proxy import tasks
from proxy.errors import SluiceError, reason

if TYPE_CHECKING:
    from starlette.types import ASGIApp
    from uvicorn import Server

    from proxy.http.access import Access
    from proxy.http.app import Health, Ready, Refresh, RenderMetrics
    from proxy.http.dashboard import Tell

log = logging.getLogger(__name__)

# Connections at a time: those of the HTTP API (see MOST_SESSIONS there), scrapes and probes. More are answered 503.
_MAX_CONNECTIONS: Final = 100
_CLOSE_TIMEOUT: Final = 2
# Seconds in which a connection that was accepted last gets its request through.
_LINGER: Final = 0.1


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
        if self._server.started:
            for listening in self._server.servers:
                listening.close()
            # uvicorn closes what it has accepted and not read yet.
            await asyncio.sleep(_LINGER)
        self._server.should_exit = True
        await asyncio.wait({self._task})


async def start(
    host: str,
    port: int,
    render_metrics: RenderMetrics,
    ready: Ready,
    health: Health,
    access: Access | None = None,
    tell: Tell | None = None,
    sockets: list[socket.socket] | None = None,
    refresh: Refresh | None = None,
    add: Callable[[ASGIApp], ASGIApp] | None = None,
) -> HttpServer:
    """Serve on each address of `host`, or at `sockets`, which are closed at the end.

    `render_metrics` gets the header Accept and returns body and content type; `health` returns what JSON can
    hold. With `access` and `tell` there is a dashboard: who may see it, and what it shows of a database.
    `add` returns the application with others beside it. Raises HttpBindError.
    """
    from uvicorn import Config, Server

    from proxy.http.app import make_app, with_security_headers
    from proxy.http.dashboard import Dashboard

    class QuietServer(Server):
        """Leaves the signals to the proxy."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    dashboard = Dashboard(access, tell) if access is not None and tell is not None else None
    app: ASGIApp = make_app(render_metrics, ready, health, dashboard, refresh)
    config = Config(
        with_security_headers(add(app) if add is not None else app),
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
    sockets = sockets or await listen(host, port)
    server = QuietServer(config)
    running = HttpServer(server, sockets, tasks.spawn(server.serve(sockets), "http server"))
    shown = f"[{running.host}]" if ":" in running.host else running.host
    log.info("metrics and health on http://%s:%d", shown, running.port)
    return running


async def listen(host: str, port: int) -> list[socket.socket]:
    """Return a listening socket for each address of `host`, all on one port. Raises HttpBindError.

    An address that this machine lacks, as ::1 of `localhost` without IPv6, is left out if there is another.
    """
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise _bind_error(host, port, error) from error
    for family, _, _, _, address in dict.fromkeys(found):
        if sockets and port == 0:
            address = (address[0], sockets[0].getsockname()[1], *address[2:])
        try:
            sockets.append(socket.create_server(address, family=family, backlog=128))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for listening in sockets:
                    listening.close()
                raise _bind_error(host, port, error) from error
            missing = error
    if not sockets and missing is not None:
        raise _bind_error(host, port, missing)
    return sockets


def _bind_error(host: str, port: int, error: OSError) -> HttpBindError:
    return HttpBindError(f"http: can't listen on {host}:{port}: {reason(error)}")
