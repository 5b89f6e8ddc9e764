"""A network that can fail: passes bytes on to a server, swallows them, or refuses connections, as it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

_HOST = "127.0.0.1"


class Relay:
    """Listens on `port` of this machine, in front of the server on the port `target`; runs in a thread of its own."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._thread.start()
        self._ready.wait()

    def silence(self) -> None:
        """Drop packets: nothing is passed on or answered any more, and new connections are taken all the same."""
        self._loop.call_soon_threadsafe(self._passes.clear)

    def refuse(self) -> None:
        """Reset all connections, and refuse new ones."""
        self._run(self._stop_listening())

    def heal(self) -> None:
        """Pass everything on, also what was held back meanwhile, as TCP sends again what was lost."""
        self._run(self._listen())

    def close(self) -> None:
        """Stop listening, and end all connections."""
        self._run(self._stop_listening())
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def _run(self, doing: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(doing, self._loop).result()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._passes = asyncio.Event()
        self._closing = asyncio.Event()
        await self._listen()
        self._ready.set()
        await self._closing.wait()

    async def _listen(self) -> None:
        self._passes.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, _HOST, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            await self._passes.wait()
            with suppress(OSError):
                there, back = await asyncio.open_connection(_HOST, self._target)
                self._open.add(back)
                try:
                    await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))
                finally:
                    self._open.discard(back)
                    back.transport.abort()
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                await self._passes.wait()
                target.write(data)
                await target.drain()
        # The end of a connection is a packet like others.
        await self._passes.wait()
        target.close()
