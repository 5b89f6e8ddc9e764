"""The way through a tunnel, and which way leads to a host of the configuration."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final, cast

from proxy.config import Host, ServiceToken
from proxy.tasks import spawn
from proxy.transport.asking import Security
from proxy.transport.tls import ServerTls
from proxy.transport.way import Contexts, Way
from proxy.tunnel.relay import Relay, near_end
from proxy.tunnel.websocket import open_websocket, outer_context

LONGEST: Final = 3600.0
"""Seconds that a connection lasts at most: the edge drops sockets after hours, and at its releases all at once. Ours
end before, at half to all of this time, while nobody uses them."""


def way_to(host: Host) -> Way:
    """Return the way to `host`; raises TlsError where its certificates can't be used."""
    tls = ServerTls(host.tls)
    if host.transport == "cloudflare":
        return Tunnel(host.host, host.port, tls, host.service_token)
    return Way(host.host, host.port, tls)


class Tunnel(Way):
    """PostgreSQL behind the tunnel whose hostname is `host`; each connection is a WebSocket of its own."""

    longest = LONGEST
    # TCP, TLS and the upgrade come before PostgreSQL's own: eight round trips in all.
    slow_to_open = True
    # The name's addresses are the edge's, and tell nothing of PostgreSQL.
    follows_names = False

    def __init__(self, host: str, port: int, tls: Security, token: ServiceToken | None = None) -> None:
        super().__init__(host, port, tls)
        self.token = token
        self.context = outer_context()

    async def dial(self) -> socket.socket:
        """Return one end of a pair of sockets, behind whose other end PostgreSQL is; raises TunnelError."""
        websocket = await open_websocket(self.host, self.port, self.token, self.context)

        def start(far: socket.socket) -> None:
            spawn(Relay(websocket, far, self.address).run(), f"tunnel to {self.address}")

        return near_end(start)

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return an event loop whose TCP connections go through the tunnel, for asyncpg."""
        return cast("asyncio.AbstractEventLoop", _Loop(asyncio.get_running_loop(), self))

    def read(self) -> Contexts:
        """Read certificates again, the outer ones too."""
        return (*super().read(), outer_context())

    def renew(self, contexts: Contexts) -> None:
        """Encrypt connections to come by what was read."""
        super().renew(contexts)
        outer = contexts[1]
        assert outer is not None
        self.context = outer


class _Loop:
    """The running loop in all but `create_connection`, where asyncpg asks for a TCP connection.

    asyncpg takes a host and a port, and does no TLS over Unix sockets: it is not to know what it is given.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, way: Tunnel) -> None:
        self._loop = loop
        self._way = way

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def __eq__(self, other: object) -> bool:
        """Be the same to `asyncio.current_task(loop)`, which looks tasks up by their loop."""
        return self._loop == other

    def __hash__(self) -> int:
        return hash(self._loop)

    async def create_connection(self, factory: Any, host: str, port: int) -> Any:
        """Connect to PostgreSQL behind the tunnel; asyncpg names the address that the way leads to."""
        sock = await self._way.dial()
        try:
            return await self._loop.create_unix_connection(factory, sock=sock)
        except BaseException:
            sock.close()
            raise
