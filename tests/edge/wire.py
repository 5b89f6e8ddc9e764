"""A long way between a client and a port: each byte arrives half a round trip after it was sent, both ways.

Below TLS and HTTP, so their round trips take what they take. A connection's own round trip (SYN, SYN-ACK) is in it:
what the client sends arrives as if it had begun to send one round trip after it asked for the connection. There is no
limit of bandwidth, no loss, and no slow start. The end of a connection is a packet like others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

_MOST_UNDER_WAY = 8 * 1024 * 1024


class Wire:
    """Listens, and passes on to `target` with `round_trip` seconds there and back."""

    def __init__(self, target: int, round_trip: float) -> None:
        self._target = target
        self.round_trip = round_trip
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def listen(self, port: int = 0) -> int:
        """Begin; returns the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """End all connections."""
        if self._server is not None:
            self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        established = asyncio.get_running_loop().time() + self.round_trip
        there = None
        try:
            back, there = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(self._carry(reader, there, established), self._carry(back, writer, 0.0))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            for each in (writer, there):
                if each is not None:
                    each.transport.abort()

    async def _carry(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, not_before: float
    ) -> None:
        loop = asyncio.get_running_loop()
        under_way: deque[tuple[float, bytes]] = deque()
        changed = asyncio.Event()
        amount = 0

        async def take() -> None:
            nonlocal amount
            data = b"-"
            while data:
                try:
                    data = await source.read(65_536)
                except OSError:
                    data = b""
                under_way.append((max(loop.time(), not_before) + self.round_trip / 2, data))
                amount += len(data)
                changed.set()
                while amount > _MOST_UNDER_WAY:
                    await asyncio.sleep(0.001)

        taking = loop.create_task(take())
        try:
            while True:
                while not under_way:
                    changed.clear()
                    await changed.wait()
                due, data = under_way.popleft()
                if (pause := due - loop.time()) > 0:
                    await asyncio.sleep(pause)
                amount -= len(data)
                if not data:
                    break
                target.write(data)
                await target.drain()
        finally:
            taking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await taking
        target.close()
