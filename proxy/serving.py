"""`pgsluice serve`: the process around a Proxy, from its configuration to its end.

serve → Proxy.start: probe hosts → read keys and functions → listen
      → SIGHUP: read the configuration again
      → SIGUSR2: start a successor, which inherits the sockets; once it serves, end with the last client here
      → SIGTERM: stop accepting → let transactions finish → flush the access log → end

With several workers each is such a process, and one more supervises them: that one hands over, and hears of a shutdown.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from proxy.config import Config, from_environment, load
from proxy.errors import SluiceError
from proxy.logs import configure
from proxy.processes import notify
from proxy.processes.children import OPEN, PREPARED
from proxy.processes.inherited import Inherited, Place, inherited
from proxy.processes.runtime import Runtime
from proxy.processes.sockets import Sockets
from proxy.processes.succession import Succession
from proxy.supervisor import LEFT, RETIRE, SHUTDOWN, Supervisor
from proxy.tasks import spawn

if TYPE_CHECKING:
    from proxy.app import Proxy

log = logging.getLogger(__name__)

Read = Callable[[], Config]


def run(config_path: Path | None) -> int:
    """Run the proxy with the configuration at `config_path`, or with the environment's; returns the exit code.

    Raises SluiceError where it can't start, and tells so whoever started this process.
    """
    given = inherited(os.environ)

    def read() -> Config:
        return _read(config_path)

    try:
        config = read()
        configure(config.logging)
        if given.place is not None:
            return uvloop.run(work(config, read, given, given.place))
        if config.workers > 1:
            return uvloop.run(Supervisor(config, given).run())
        return uvloop.run(serve(config, read, given))
    except SluiceError as error:
        given.tell_failed(str(error))
        raise


def _read(config_path: Path | None) -> Config:
    """Return the configuration; raises ConfigError."""
    return load(config_path, os.environ) if config_path is not None else from_environment(os.environ)


async def serve(config: Config, read: Read, given: Inherited) -> int:
    """Run the proxy until SIGTERM, SIGINT or the end of a handover; `read` gives the configuration anew."""
    # A supervisor carries none of it.
    from proxy.app import Proxy

    sockets = Sockets(given.sockets, given.fixed)
    succession = Succession(sockets, given.runtime)
    instance = Proxy(config, Place(numbers=succession.take(1)), sockets)
    ending = asyncio.Event()

    async def reload() -> None:
        if succession.done:
            # The service is the new process's.
            await _reload(instance)
            return
        notify.reloading()
        await _reload(instance)
        notify.notify(notify.READY)

    def end() -> None:
        instance.hurry()
        ending.set()

    async def hand_over() -> None:
        if await succession.hand_over(instance.meet, instance.blocked):
            ending.set()

    _handle(end, lambda: spawn(reload(), "reload"))
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, lambda: spawn(hand_over(), "hand over"))
    instance.read = read
    instance.end = end
    await instance.prepare()
    if succession.runtime is not None:
        await instance.meet(succession.runtime)
    if given.patient:
        await instance.until_ready()
    if not ending.is_set():
        await instance.open_door()
        print(f"listening on {', '.join(instance.addresses)}", file=sys.stderr, flush=True)
        given.tell_ready()
        notify.notify(notify.READY)
    _leave_alone_what_stays()
    await ending.wait()
    await succession.give_up()
    if succession.done:
        await instance.retire()
    else:
        notify.notify(notify.STOPPING)
    await instance.drain()
    succession.close()
    _heed_no_more()
    return 0


async def work(config: Config, read: Read, given: Inherited, place: Place) -> int:
    """Run one worker until SIGTERM, or until the supervisor says that another process takes its clients."""
    from proxy.app import Proxy

    assert given.runtime is not None
    instance = Proxy(config, place, Sockets(given.sockets, fixed=True))
    ending = asyncio.Event()
    opening = asyncio.Event()
    retiring = False

    def end() -> None:
        instance.hurry()
        opening.set()
        ending.set()

    def leave(alone: bool) -> None:
        # Of a shutdown the supervisor tells the other workers; who waits for its own clients goes alone.
        given.tell(LEFT if alone else SHUTDOWN)
        end()

    async def heed() -> None:
        """Do what the supervisor says; without it there is nobody who would start another worker."""
        nonlocal retiring
        reader, _ = await asyncio.open_unix_connection(sock=socket.socket(fileno=os.dup(given.report)))
        while said := (await reader.readline()).decode().strip():
            if said == OPEN:
                opening.set()
            elif said == RETIRE:
                retiring = True
                ending.set()
        end()

    _handle(end, lambda: spawn(_reload(instance), "reload"))
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGUSR2, log.warning, "a worker hands nothing over: send SIGUSR2 to process %d", os.getppid()
    )
    heeding = spawn(heed(), "heed the supervisor")
    instance.read = read
    instance.end = lambda: leave(instance.draining)
    await instance.prepare()
    await instance.meet(Runtime(given.runtime))
    if given.patient:
        await instance.until_ready()
        given.tell(PREPARED)
        await opening.wait()
    if not ending.is_set():
        await instance.open_door()
        given.tell_ready()
    _leave_alone_what_stays()
    await ending.wait()
    if retiring:
        await instance.retire()
    await instance.drain()
    heeding.cancel()
    _heed_no_more()
    return 0


def _handle(end: Callable[[], None], reload: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, reload)


def _heed_no_more() -> None:
    """Let a signal that comes while the interpreter ends not turn a clean end into one by that signal."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


async def _reload(instance: Proxy) -> None:
    with contextlib.suppress(SluiceError):
        # The log has said why.
        await instance.reload()


def _leave_alone_what_stays() -> None:
    """Take everything that lives as long as the process out of the collector's sight.

    What a query makes is freed by its reference count.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
