"""The way out of a connection: straight into its socket while that takes everything.

An event loop's transport gathers what is written and sends it when all events of the round are handled; so the
peer starts later, and each write costs a round through the loop's queues. The socket itself takes nearly every
message of ours whole. Only what it doesn't take goes through the transport, which then tells pause_writing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import final

from mypy_extensions import i64


@final
class Outlet:
    """Writes to one peer.

    `sock` is the socket that `transport` was made of (`connect_accepted_socket`, `create_connection(sock=…)`):
    the loop detaches it as it closes the connection, so that nothing can reach a descriptor used again. None
    where bytes must not pass the transport by, as with TLS.
    """

    def __init__(self, transport: asyncio.Transport, sock: socket.socket | None) -> None:
        self._transport: asyncio.Transport = transport
        # Bound once: looking a method up costs more than the call.
        self._queue: Callable[[bytes], None] = transport.write
        self._send: Callable[[bytes], int] | None = sock.send if sock is not None else None
        # What is written now has to stand behind bytes that wait in the transport.
        self._behind = False

    def write(self, data: bytes) -> None:
        """Send `data` behind all that was written before; never blocks, never raises for a peer that is gone."""
        send = self._send
        if send is None:
            self._queue(data)
            return
        if self._behind:
            if self._transport.get_write_buffer_size() > 0:
                self._queue(data)
                return
            self._behind = False
        sent: i64 = 0
        try:
            sent = send(data)
        except OSError:
            # Full, or gone: the transport waits for the one and finds out the other.
            sent = 0
        if sent < len(data):
            self._behind = True
            self._queue(data if sent == 0 else data[sent:])
