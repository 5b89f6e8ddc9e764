"""Between a WebSocket and one end of a pair of sockets: bytes both ways, until either side ends.

The other end is used like a connection to PostgreSQL itself. There is no half close: a WebSocket has none.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Final

from websockets.exceptions import ConnectionClosed

from proxy.tunnel.websocket import WebSocket

log = logging.getLogger(__name__)

LARGEST_SENT: Final = 16_384
"""Bytes in a message of ours: of more cloudflared drops the rest without a word (its pull request 1741)."""

PING_AFTER: Final = 60.0
"""Seconds of silence, both ways, after which we ask: cloudflared sends a ping each 54 s, so they are out of order."""

DEAD_AFTER: Final = 120.0
"""Seconds without anything from the other side, after which nobody is there."""

_LOOK: Final = 5.0
"""Seconds between two looks while data goes out and none comes in."""


class Relay:
    """Passes bytes between `websocket` and `sock`, both of which are its own to close."""

    def __init__(self, websocket: WebSocket, sock: socket.socket, address: str) -> None:
        self._websocket = websocket
        self._sock = sock
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._sent_at = time.monotonic()
        websocket.heard_at = self._sent_at
        # Our own side takes nothing: then the network isn't read, and its silence tells nothing.
        self._delivering = False

    async def run(self) -> None:
        """Pass on until one side ends; then both are closed. What had come before the end is still delivered."""
        tasks = [self._loop.create_task(each()) for each in (self._up, self._down, self._watch)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            # A cancellation of ours comes through this wait too; the sockets are closed all the same.
            try:
                for ended in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(ended, Exception):
                        log.error("tunnel to %s: a relay failed", self._address, exc_info=ended)
            finally:
                self._sock.close()
                await self._close()

    async def _up(self) -> None:
        """From our side to the tunnel."""
        try:
            while data := await self._loop.sock_recv(self._sock, LARGEST_SENT):
                await self._websocket.send(data)
                self._sent_at = time.monotonic()
        except ConnectionClosed:
            # What came from there may still be on its way to us: the other direction ends the relay.
            await self._websocket.wait_closed()
            await asyncio.Event().wait()
        except OSError:
            return

    async def _down(self) -> None:
        """From the tunnel to our side. Text is none of PostgreSQL's: cloudflared drops it, and so do we."""
        try:
            while True:
                message = await self._websocket.recv()
                if isinstance(message, bytes):
                    self._delivering = True
                    await self._loop.sock_sendall(self._sock, message)
                    self._delivering = False
                    self._websocket.heard_at = time.monotonic()
        except ConnectionClosed as ended:
            if ended.sent is not None and not ended.rcvd_then_sent:
                log.warning(
                    "tunnel to %s: the other side broke the protocol: %s; closed", self._address, ended.sent
                )
                return
            # Without a Close frame is how tunnels end (1006).
            log.debug("tunnel to %s ended: %s", self._address, ended)
        except OSError as error:
            log.debug("tunnel to %s: its user is gone: %s", self._address, error)

    async def _watch(self) -> None:
        """End when nobody is there any more; ask once before."""
        asked_at = 0.0
        while True:
            now = time.monotonic()
            if self._delivering:
                self._websocket.heard_at = now
            heard_at = self._websocket.heard_at
            if now - heard_at >= DEAD_AFTER:
                log.warning("tunnel to %s: nothing has come for %.0f s; closed", self._address, DEAD_AFTER)
                return
            due = heard_at + (DEAD_AFTER if asked_at > heard_at else PING_AFTER)
            if asked_at <= heard_at and now >= due:
                if now - self._sent_at >= _LOOK:
                    await self._ping()
                    asked_at = time.monotonic()
                due = now + _LOOK
            await asyncio.sleep(max(due - now, 0.01))

    async def _ping(self) -> None:
        try:
            await self._websocket.ping()
        except ConnectionClosed:
            return

    async def _close(self) -> None:
        """Close in good order where that is answered, else at once."""
        try:
            await self._websocket.close()
        finally:
            self._websocket.transport.abort()


def near_end(start: Callable[[socket.socket], None]) -> socket.socket:
    """Return one end of a new pair of sockets; `start` is given the other."""
    near, far = socket.socketpair()
    try:
        for end in (near, far):
            end.setblocking(False)
        start(far)
    except BaseException:
        near.close()
        far.close()
        raise
    return near
