"""A long way: a relay that holds every byte back for half a round trip, in either direction."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

_HOST = "127.0.0.1"


class Delayed:
    """Listens on `port`, in front of the server on the port `target`, a `round_trip` of seconds away; has a thread."""

    def __init__(self, target: int, round_trip: float) -> None:
        self.port = 0
        self._target = target
        self._delay = round_trip / 2
        self._serving: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        """Stop listening, and end all connections."""
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        server = await asyncio.start_server(self._serve, _HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._closing.wait()
        server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*list(self._serving), return_exceptions=True)
        # Transports that were aborted close their sockets in a turn of the loop to come.
        await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        ends = [writer]
        try:
            there, back = await asyncio.open_connection(_HOST, self._target)
            ends.append(back)
            await asyncio.gather(self._carry(reader, back), self._carry(there, writer))
        except OSError:
            # PostgreSQL is gone: so is the way to it.
            return
        finally:
            self._serving.discard(task)
            for each in ends:
                each.transport.abort()

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                # Timers of one delay go off in the order in which they were set.
                self._loop.call_later(self._delay, target.write, data)
        self._loop.call_later(self._delay, target.transport.abort)
