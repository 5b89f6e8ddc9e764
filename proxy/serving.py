"""`pgsluice serve`: the process around a Proxy, from its configuration to its end.

serve → Proxy.start: probe hosts → read keys and functions → listen
      → SIGHUP: read the configuration again
      → SIGUSR2: start a successor, which inherits the sockets; once it serves, end with the last client here
      → SIGTERM: stop accepting → let transactions finish → flush the access log → end
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import uvloop

from proxy.app import Proxy
from proxy.config import Config, ConfigError, from_environment, load, refuse_unavailable
from proxy.errors import SluiceError
from proxy.logs import configure
from proxy.processes import notify
from proxy.processes.inherited import Inherited, Place, inherited
from proxy.processes.sockets import Sockets
from proxy.processes.succession import Succession
from proxy.tasks import spawn

log = logging.getLogger(__name__)


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
        uvloop.run(serve(config, read, given))
    except SluiceError as error:
        given.tell_failed(str(error))
        raise
    return 0


def _read(config_path: Path | None) -> Config:
    """Return the configuration; raises ConfigError."""
    return refuse_unavailable(
        load(config_path, os.environ) if config_path is not None else from_environment(os.environ)
    )


async def serve(config: Config, read: Callable[[], Config], given: Inherited) -> None:
    """Run the proxy until SIGTERM, SIGINT or the end of a handover; `read` gives the configuration anew."""
    sockets = Sockets(given.sockets, given.fixed)
    succession = Succession(sockets, given.runtime)
    instance = Proxy(config, Place(numbers=succession.take(1)), sockets)
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()

    def reload() -> None:
        notify.reloading()
        try:
            instance.reload(read())
        except ConfigError as error:
            log.error("reload refused, the old configuration stays: %s", error)
        notify.notify(notify.READY)

    def end() -> None:
        instance.hurry()
        ending.set()

    async def hand_over() -> None:
        if await succession.hand_over(instance.meet, instance.blocked):
            ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, reload)
    loop.add_signal_handler(signal.SIGUSR2, lambda: spawn(hand_over(), "hand over"))
    instance.read = read
    instance.end = end
    await instance.prepare()
    if succession.runtime is not None:
        await instance.meet(succession.runtime)
    if given.patient:
        await instance.until_ready()
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


def _leave_alone_what_stays() -> None:
    """Take everything that lives as long as the process out of the collector's sight.

    What a query makes is freed by its reference count.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
