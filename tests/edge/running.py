"""The edge in a thread of its own, at the end of a wire, for tests that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from tests.certificates import Pair
from tests.edge.edge import Edge, Seen
from tests.edge.wire import Wire

T = TypeVar("T")


class RunningEdge:
    """An edge that listens on `port`, `round_trip` seconds away; arguments are Edge's."""

    def __init__(
        self, target: int, certificate: Pair, *, round_trip: float = 0.0, port: int = 0, **how: Any
    ) -> None:
        self.port = port
        self._ready = threading.Event()
        self._make: Callable[[], Edge] = lambda: Edge(target, certificate, **how)
        self._round_trip = round_trip
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True, name="edge")
        self._thread.start()
        self._ready.wait()

    @property
    def seen(self) -> Seen:
        """Return what came in up to now."""
        return self.edge.seen

    def do(self, work: Callable[[Edge], T]) -> T:
        """Have the edge do something, in its own thread: `edge.do(Edge.reset)`."""

        async def doing() -> T:
            return work(self.edge)

        return asyncio.run_coroutine_threadsafe(doing(), self._loop).result(10.0)

    def answers(self, name: str) -> None:
        """Answer each upgrade so from now on, by a name of ANSWERS; "" for as it should be."""
        self.do(lambda edge: setattr(edge, "answer", name))

    def leads_to(self, port: int) -> None:
        """Have PostgreSQL on another port from now on."""
        self.do(lambda edge: setattr(edge, "target", port))

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(10.0)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        self.edge = self._make()
        wire = None
        if self._round_trip:
            wire = Wire(await self.edge.listen(), self._round_trip)
            self.port = await wire.listen(self.port)
        else:
            self.port = await self.edge.listen(self.port)
        self._ready.set()
        await self._closing.wait()
        if wire is not None:
            await wire.close()
        await self.edge.close()
