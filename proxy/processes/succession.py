"""Handing over to a new process: it inherits the listening sockets, so that no connection is refused or lost.

A connection that the kernel has taken for a socket waits there until somebody accepts it. Two sockets at one address
(SO_REUSEPORT) have a queue each, and what waits in the old one's is lost when that closes: the new process has to get
the socket itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from proxy.errors import SluiceError
from proxy.processes import children, notify
from proxy.processes.children import StartError
from proxy.processes.runtime import Runtime
from proxy.processes.sockets import Sockets
from proxy.tasks import stop

log = logging.getLogger(__name__)


class Succession:
    """From one process to the next: the sockets that it gets, and the directory where both meet."""

    def __init__(self, sockets: Sockets, runtime: Path | None) -> None:
        """Take part in the directory `runtime`, where this process is a successor itself; raises SluiceError."""
        self.runtime = Runtime(runtime) if runtime is not None else None
        # A successor serves.
        self.done = False
        self._sockets = sockets
        self._under_way: asyncio.Task[bool] | None = None

    def take(self, count: int) -> tuple[int, ...]:
        """Return numbers for `count` processes; raises SluiceError."""
        return tuple(self.runtime.take(count)) if self.runtime is not None else tuple(range(count))

    async def hand_over(self, meet: Callable[[Runtime], Awaitable[None]], blocked: str = "") -> bool:
        """Start a successor, and return once it serves; False where that fails, and then the log says why.

        `meet` is called where there is no directory yet: from then on this process answers there. Where it is `blocked`
        by something, nothing is done but to say so.
        """
        if self.done or self._under_way is not None:
            log.warning("a handover is under way already")
            return False
        self._under_way = asyncio.ensure_future(self._start(meet, blocked))
        try:
            self.done = await self._under_way
        except asyncio.CancelledError:
            return False
        finally:
            self._under_way = None
        return self.done

    async def give_up(self) -> None:
        """End a successor that doesn't serve yet."""
        await stop(self._under_way)

    def close(self) -> None:
        """Leave the directory."""
        if self.runtime is not None:
            self.runtime.close()

    async def _start(self, meet: Callable[[Runtime], Awaitable[None]], blocked: str) -> bool:
        try:
            if blocked or os.getpid() == 1:
                raise StartError(blocked or "the end of process 1 would end its container")
            if self.runtime is None:
                runtime = Runtime.make()
                runtime.take(1)
                await meet(runtime)
                self.runtime = runtime
            log.info("handing over: a new process starts")
            successor = await children.start(
                self._sockets.named, self._sockets.fixed, self.runtime.directory, patient=True
            )
            await successor.ready()
        except SluiceError as error:
            log.error("no handover, this process goes on serving: %s", error)
            return False
        successor.close()
        self._sockets.keep()
        notify.main_process(successor.pid)
        log.info("handed over to process %d", successor.pid)
        return True
