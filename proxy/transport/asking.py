"""Asking a PostgreSQL server for TLS (manual, "SSL Session Encryption")."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Final

from proxy.wire.codes import SSL_REQUEST

SHUTDOWN_TIMEOUT: Final = 5.0
"""Seconds that a peer gets to answer our close_notify before its connection is cut."""

_SSL_REQUEST: Final = (8).to_bytes(4, "big") + SSL_REQUEST.to_bytes(4, "big")


class Security:
    """How a server is spoken to: `mode` is one of libpq's sslmodes, `context` is None where TLS is off."""

    def __init__(self, mode: str, context: ssl.SSLContext | None) -> None:
        self.mode = mode
        self.context = context

    def read(self) -> ssl.SSLContext | None:
        """Read the files again that it was made from; returns what is to be `context`."""
        return self.context


async def ask_for_tls(sock: socket.socket, tls: Security, encrypted: bool = False) -> ssl.SSLContext | None:
    """Ask the server at the other end of `sock` for TLS; None where the connection goes on without.

    With `encrypted` nothing but TLS will do, whatever the mode. One byte is read: what a server, or somebody
    on the way, sends behind its answer is left to the handshake, which fails over it (CVE-2021-23222). Raises
    ConnectionError.
    """
    if tls.context is None:
        return None
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, _SSL_REQUEST)
    answer = await loop.sock_recv(sock, 1)
    if answer == b"S":
        return tls.context
    if answer == b"N":
        if tls.mode == "prefer" and not encrypted:
            return None
        raise ConnectionError(f"the server does not support TLS, which mode {tls.mode} needs")
    if not answer:
        raise ConnectionError("the server closed the connection when asked for TLS")
    # An error's text would come from anybody on the way (CVE-2024-10977).
    raise ConnectionError("the server answered the request for TLS with something else")
