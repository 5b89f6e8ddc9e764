"""`pgsluice serve`: the process around a Proxy, from its configuration to its end.

serve → Proxy.start: probe hosts → read keys and functions → listen
      → SIGTERM: stop accepting → let transactions finish → flush the access log → end
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from pathlib import Path

import uvloop

from proxy.app import Proxy
from proxy.config import Config, ConfigError, from_environment, load, refuse_unavailable
from proxy.logs import configure

log = logging.getLogger(__name__)


def run(config_path: Path | None) -> int:
    """Run the proxy with the configuration at `config_path`, or with the environment's; returns the exit code."""
    config = _read(config_path)
    configure(config.logging)
    uvloop.run(serve(config, config_path))
    return 0


def _read(config_path: Path | None) -> Config:
    """Return the configuration; raises ConfigError."""
    return refuse_unavailable(
        load(config_path, os.environ) if config_path is not None else from_environment(os.environ)
    )


async def serve(config: Config, config_path: Path | None = None) -> None:
    """Run the proxy until SIGTERM or SIGINT, then drain; SIGHUP reads the configuration again."""
    instance = Proxy(config)
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)

    def reload() -> None:
        try:
            instance.reload(_read(config_path))
        except ConfigError as error:
            log.error("reload refused, the old configuration stays: %s", error)

    loop.add_signal_handler(signal.SIGHUP, reload)
    instance.read = lambda: _read(config_path)
    instance.end = ending.set
    await instance.start()
    _leave_alone_what_stays()
    await ending.wait()
    await instance.drain()


def _leave_alone_what_stays() -> None:
    """Take everything that lives as long as the process out of the collector's sight.

    What a query makes is freed by its reference count.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
