"""The way to a host: whoever needs a connection to PostgreSQL gets it here, whatever lies between."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from proxy.transport import tcp
from proxy.transport.asking import SHUTDOWN_TIMEOUT, Security, ask_for_tls

P = TypeVar("P", bound=asyncio.BaseProtocol)
Contexts: TypeAlias = "tuple[ssl.SSLContext | None, ...]"


class Way:
    """Plain TCP, or a Unix socket where `host` is its directory; ways with more between derive from this one."""

    longest: float = 0.0
    """Seconds that a connection may last, with jitter; 0.0 for no limit of the way's own."""

    slow_to_open: bool = False
    """Opening a connection takes many round trips: longer, perhaps, than anybody waits for an answer on an open one."""

    follows_names: bool = True
    """The name's address is that of PostgreSQL: where it changes, connections to the old one are let go of."""

    def __init__(self, host: str, port: int, tls: Security) -> None:
        self.host = host
        self.port = port
        self.tls = tls

    @property
    def address(self) -> str:
        """Return host and port as people write them."""
        return f"{self.host}:{self.port}"

    async def dial(self) -> socket.socket:
        """Return a connected socket, behind which PostgreSQL waits for the first byte; raises OSError."""
        return await tcp.connect(self.host, self.port)

    async def open(self, protocol: Callable[[socket.socket | None], P], encrypted: bool = False) -> P:
        """Connect, with PostgreSQL's TLS where the host's settings say so and the server agrees.

        `protocol` makes the connection's protocol; it gets the socket, where bytes may be written past the transport:
        None with TLS. With `encrypted` nothing but TLS will do, whatever the settings. Raises OSError.
        """
        loop = asyncio.get_running_loop()
        sock = await self.dial()
        try:
            # A server on this machine's own socket has no TLS to offer.
            context = await ask_for_tls(sock, self.tls, encrypted) if not self.host.startswith("/") else None
            plain = sock if context is None else None
            arguments: dict[str, Any] = {}
            if context is not None:
                arguments = {
                    "ssl": context,
                    "server_hostname": self.host,
                    "ssl_shutdown_timeout": SHUTDOWN_TIMEOUT,
                }
            unix = sock.family == socket.AF_UNIX
            create: Any = loop.create_unix_connection if unix else loop.create_connection
            _, made = await create(lambda: protocol(plain), sock=sock, **arguments)
        except BaseException:
            sock.close()
            raise
        opened: P = made
        return opened

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop for a library that connects to `host` and `port` by itself."""
        return asyncio.get_running_loop()

    def read(self) -> Contexts:
        """Read certificates again; returns what `renew` takes. Raises TlsError."""
        return (self.tls.read(),)

    def renew(self, contexts: Contexts) -> None:
        """Encrypt connections to come by what was read."""
        self.tls.context = contexts[0]
