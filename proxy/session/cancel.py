"""Cancel requests: from a client to the server connection that its session holds at that moment."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from typing import cast

from proxy.session.sessions import Sessions
from proxy.upstream.pool import Pool
from proxy.upstream.server import IDLE, Server
from proxy.wire.codes import CANCEL_REQUEST

log = logging.getLogger(__name__)

_TIMEOUT = 5.0

_NOW = 1e-9
"""A time to retire at that has always come."""


async def cancel_session(sessions: Sessions, pid: int, secret: bytes) -> bool:
    """Cancel what the session `pid` does; False, and no server is touched, where `secret` is not its own.

    A cancel that arrives late must not hit whoever uses the server connection then: see cancel_held.
    """
    session = sessions.by_pid.get(pid)
    visitor = sessions.visitors.get(pid)
    client = session if session is not None else visitor
    expected = client.secret if client is not None else b"\0\0\0\0"
    if not hmac.compare_digest(expected, secret):
        return False
    if visitor is not None:
        visitor.cancel()
    if session is None:
        return visitor is not None
    pool = session.pool
    server = session.cancel()
    if server is None or pool is None:
        return True
    await cancel_held(server, pool)
    return True


async def cancel_held(server: Server, pool: Pool) -> None:
    """Cancel what `server` does for the session that holds it, and keep it from any other until that is done."""
    pool.stats.cancels += 1
    server.cancels += 1
    done = False
    try:
        done = await cancel_server(server)
    finally:
        server.cancels -= 1
        if not done:
            # It may yet arrive: nobody else gets this connection.
            server.retire_at = _NOW
        if server.cancels == 0 and server.state == IDLE:
            pool.give_back(server, time.monotonic())


async def cancel_server(server: Server) -> bool:
    """Send a CancelRequest for `server` over a connection of its own, and wait until the server has taken it.

    The postmaster closes the connection when it has signalled the backend (manual, "Canceling Requests in
    Progress"). One that does not get through is logged: the query then runs to its end. Returns False where the
    request was sent and may take effect at any time from now on.
    """
    assert server.way is not None
    head = (12 + len(server.secret)).to_bytes(4, "big") + CANCEL_REQUEST.to_bytes(4, "big")
    request = _Request(head + server.pid.to_bytes(4, "big") + server.secret)
    try:
        async with asyncio.timeout(_TIMEOUT):
            await server.way.open(lambda _: request, server.encrypted)
            await request.taken
    except (OSError, TimeoutError) as error:
        log.warning("cancel request to %s failed: %s", server.address, str(error) or "no answer in time")
        return not request.sent
    finally:
        request.close()
    return True


class _Request(asyncio.Protocol):
    """Sends a request, and waits for the end of the connection."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._transport: asyncio.Transport | None = None
        self.sent = False
        self.taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio.Transport, but do not derive from it.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._data)
        self.sent = True

    def connection_lost(self, failure: Exception | None) -> None:
        # However it ended: there is no other answer.
        if not self.taken.done():
            self.taken.set_result(None)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()
