"""Opening, in the background, the connections that a pool wants."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from proxy.errors import ClientError
from proxy.tasks import spawn
from proxy.upstream.login import Login, connect
from proxy.upstream.pool import Pool
from proxy.upstream.server import Server

log = logging.getLogger(__name__)

_RETRY: Final = 1.0
"""Seconds from an attempt that failed to the next."""

_STEP: Final = 0.1
"""Seconds between two looks whether the host has answered otherwise meanwhile."""


class Opener:
    """Opens the connections of one pool.

    Another `login` may be set at any time: what is under way under the one before it counts for nothing.
    """

    def __init__(self, login: Login, alarm: Callable[[], None]) -> None:
        """Open under `login`; `alarm` is told of a host that takes no connections, or has ended one by itself."""
        self.login = login
        self._alarm = alarm

    def start(self, pool: Pool) -> None:
        """Open a connection for `pool`, which is told what comes of it: this is its `open`."""
        spawn(self._open(pool), f"connect {self.login.address}")

    async def _open(self, pool: Pool) -> None:
        await _after_failures(pool)
        started = time.monotonic()
        login = self.login
        try:
            server = await connect(login, partial(self._closed, pool))
        except ClientError as error:
            if self.login is not login:
                pool.opened_in_vain()
                return
            if pool.failures_in_a_row == 0:
                log.warning("pool %s on %s: %s", pool.name, pool.host, error.extra)
            pool.open_failed(error)
            if pool.failing:
                self._alarm()
            return
        if self.login is not login:
            server.close()
            pool.opened_in_vain()
            return
        now = time.monotonic()
        pool.stats.connect_time.observe(int((now - started) * 1e6))
        pool.opened(server, now)

    def _closed(self, pool: Pool, server: Server) -> None:
        """Tell `pool` that a connection of its has ended; the monitor learns of one that ended by itself."""
        if server.broke:
            self._alarm()
        pool.closed(server)


async def _after_failures(pool: Pool) -> None:
    """Wait where the last attempt to open a connection failed: a host that refuses is asked once a second.

    Not longer than until its host has answered otherwise.
    """
    until = time.monotonic() + _RETRY
    while pool.failures_in_a_row and time.monotonic() < until:
        await asyncio.sleep(_STEP)
