"""`workers: N`: a process that opens the sockets, starts N workers, and starts one again that dies.

It works for no client and talks to no server. Each worker has its sockets from it, and they stay open here: what a
worker that dies has not accepted yet, the one that takes its place does.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Coroutine, Iterable
from typing import Any, Final

from proxy.config import Config
from proxy.errors import SluiceError
from proxy.http import server as http_server
from proxy.processes import children, notify
from proxy.processes.children import OPEN, PREPARED, READY, Child, StartError
from proxy.processes.inherited import Inherited, Place
from proxy.processes.peers import PeerError, Peers
from proxy.processes.runtime import Runtime
from proxy.processes.sockets import HTTP, POSTGRES, Named, Sockets, deal
from proxy.processes.succession import Succession
from proxy.tasks import spawn, stop

log = logging.getLogger(__name__)

SHUTDOWN: Final = "shutdown"
LEFT: Final = "left"
RETIRE: Final = "retire"

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 10.0
"""Seconds until a worker that has died is started again: twice as long each time, and from the start after a minute."""

_WELL_AFTER: Final = 60.0


class Supervisor:
    """The workers of a proxy, from their start to their end."""

    def __init__(self, config: Config, given: Inherited) -> None:
        self._config = config
        self._given = given
        self._sockets = Sockets(given.sockets, given.fixed)
        self._succession = Succession(self._sockets, given.runtime or Runtime.make().directory)
        self._numbers = self._succession.take(config.workers)
        self._workers: dict[int, Child] = {}
        self._shares: list[list[Named]] = []
        self._ending = False
        self._keepers: list[asyncio.Task[None]] = []

    async def run(self) -> int:
        """Start the workers, and return the exit code when all have ended; raises SluiceError where one can't start."""
        try:
            self._shares = await self._open()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._end)
            await self._start_all()
            loop.add_signal_handler(signal.SIGHUP, self._reload)
            loop.add_signal_handler(signal.SIGUSR2, lambda: spawn(self._hand_over(), "hand over"))
            self._tell_ready()
            await asyncio.gather(*self._keepers)
            return 0
        finally:
            await stop(*self._keepers)
            await self._succession.give_up()
            for worker in self._workers.values():
                await worker.kill()
            self._sockets.close()
            self._succession.close()

    # -- sockets

    async def _open(self) -> list[list[Named]]:
        """Open all sockets; return those of each worker."""
        listen, http = self._config.listen, self._config.http
        count = self._config.workers
        sockets = await self._sockets.postgres(listen.host, listen.port, listen.unix_socket_dir, count)
        shares: list[list[Named]] = [
            [(POSTGRES, sock) for sock in part] for part in deal(sockets, self._config.workers)
        ]
        if http is not None:
            found = await self._sockets.http(http.host, http.port)
            if not found:
                found = await http_server.listen(http.host, http.port)
                self._sockets.use(HTTP, found)
            shares[0] += [(HTTP, sock) for sock in found]
        self._sockets.close_others()
        return shares

    # -- workers

    async def _start_all(self) -> None:
        patient = self._given.patient
        await _all(self._start(index, patient) for index in range(self._config.workers))
        if patient:
            for worker in self._workers.values():
                worker.tell(OPEN)
            await _all(self._ready(index) for index in range(self._config.workers))
        self._keepers = [spawn(self._keep(index), f"worker {index}") for index in range(self._config.workers)]

    async def _start(self, index: int, patient: bool) -> None:
        runtime = self._succession.runtime
        assert runtime is not None
        worker = await children.start(
            self._shares[index], True, runtime.directory, Place(index, self._numbers), patient
        )
        self._workers[index] = worker
        if self._ending:
            worker.signal(signal.SIGTERM)
        await self._ready(index, PREPARED if patient else READY)
        log.info("worker %d is process %d", index, worker.pid)

    async def _ready(self, index: int, word: str = READY) -> None:
        try:
            await self._workers[index].ready(word)
        except StartError:
            self._workers.pop(index, None)
            raise

    async def _keep(self, index: int) -> None:
        """Start the worker again whenever it dies, until it is to end."""
        pause = _FIRST_PAUSE
        while True:
            began = time.monotonic()
            code = await self._follow(index)
            if self._ending or self._succession.done or code is None:
                return
            if time.monotonic() - began > _WELL_AFTER:
                pause = _FIRST_PAUSE
            while not self._ending:
                log.error(
                    "worker %d has ended (exit code %d), and is started again in %g s", index, code, pause
                )
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                try:
                    await self._start(index, False)
                    break
                except StartError as error:
                    log.error("worker %d can't start: %s", index, error)

    async def _follow(self, index: int) -> int | None:
        """Hear what a worker says until it has ended; return its exit code, None where it was to end."""
        worker = self._workers[index]
        leaving = False
        while said := await worker.hear():
            if said == SHUTDOWN:
                self._end()
            leaving = leaving or said == LEFT
        code = await worker.ended()
        worker.close()
        self._workers.pop(index, None)
        return None if leaving else code

    # -- signals

    def _end(self) -> None:
        if not self._ending and not self._succession.done:
            notify.notify(notify.STOPPING)
        self._ending = True
        spawn(self._succession.give_up(), "give up a handover")
        for worker in self._workers.values():
            worker.signal(signal.SIGTERM)

    def _reload(self) -> None:
        notify.reloading()
        for worker in self._workers.values():
            worker.signal(signal.SIGHUP)
        notify.notify(notify.READY)

    async def _hand_over(self) -> None:
        if self._ending:
            return
        runtime = self._succession.runtime
        assert runtime is not None
        try:
            blocked = await Peers(runtime, -1).ask(self._numbers[0], "blocked")
        except PeerError as error:
            blocked = str(error)
        if await self._succession.hand_over(_already_met, blocked):
            for worker in self._workers.values():
                worker.tell(RETIRE)

    def _tell_ready(self) -> None:
        if self._ending:
            return
        places = dict.fromkeys(
            _shown(sock.getsockname()) for name, sock in self._sockets.named if name == POSTGRES
        )
        count = self._config.workers
        print(f"listening on {', '.join(places)} with {count} workers", file=sys.stderr, flush=True)
        self._given.tell_ready()
        notify.notify(notify.READY)


async def _all(starts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all of them; raises the first one's error."""
    for outcome in await asyncio.gather(*starts, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def _already_met(runtime: Runtime) -> None:
    raise SluiceError("the workers have met before")


def _shown(address: object) -> str:
    if not isinstance(address, tuple):
        return str(address)
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
