"""What keeps a database's results current beside its sessions: settings, NOTIFY, time, and asking anew.

A result that has become stale is asked for by a session of the proxy's own: with the identity, the settings and the
permissions of the one that has found it, and without a client.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final

from proxy import config as model
from proxy.session.database import Database
from proxy.session.results import Flight, Results
from proxy.session.session import Session
from proxy.session.state import SessionState
from proxy.upstream.server import Borrower

log = logging.getLogger(__name__)

MAX_ASKING: Final = 100
"""Results that are asked for anew at a time: each waits for a server connection as a client would."""

MAX_NAME: Final = 200
"""Bytes of a name in a notification that is taken for one; PostgreSQL's have 63, and quotes."""


class Keeping:
    """Looks after the results of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.results = Results(1, 1)
        self._asking: dict[Flight, Session] = {}
        database.refresh = self._refresh

    def take_over(self, settings: model.Database) -> None:
        """Go by these settings from now on."""
        results, cache = self.results, settings.cache
        results.ttl = cache.ttl
        results.max_ttl = cache.max_ttl
        results.stale = cache.stale_while_revalidate
        results.on = cache.mode == "on"
        results.pools = {name: pool.cache for name, pool in settings.pools.items() if pool.cache is not None}
        results.resize(cache.max_bytes, cache.max_entry)
        if cache.mode != "off" and settings.pool_mode == "transaction":
            if self._database.results is None:
                # Nobody took note of writes until now.
                self.flush()
                self._database.results = results
        elif self._database.results is not None:
            self._database.results = None
            results.let_go(time.monotonic())

    @property
    def keeps(self) -> bool:
        """Tell whether results are kept, or may be."""
        return self._database.results is not None

    def heard(self, name: str) -> None:
        """Learn that the relation `name`, or everything, was written elsewhere."""
        if name and len(name) <= MAX_NAME:
            self.results.wrote([name], time.monotonic())
        else:
            self.flush()

    def flush(self) -> None:
        """Drop every result."""
        self.results.flush(time.monotonic())

    def tick(self, now: float) -> None:
        """Let go of what has run out; to be called several times a second."""
        if self._database.results is None and not self._asking:
            return
        self.results.tick(now)
        for flight, session in list(self._asking.items()):
            if flight.over:
                del self._asking[flight]
                # It holds nothing any more, unless its question was given up.
                session.connection_lost(None)

    def _refresh(self, asker: Borrower, flight: Flight, data: bytes) -> bool:
        """Ask for the answer to `flight` as `asker` would; False where too much is asked for already."""
        if len(self._asking) >= MAX_ASKING or not isinstance(asker, SessionState):
            return False
        session = Session(
            self._database,
            _Nobody(),
            asker.key,
            asker.identity,
            asker.profile,
            asker.asked_pool,
            asker.log_part,
            None,
        )
        session.start_reports = asker.start_reports
        session.reported = dict(asker.reported)
        session.family = asker.family
        session.on_abandon = asker.on_abandon
        session.filling = flight
        self._asking[flight] = session
        session.data_received(data)
        return True


class _Nobody(asyncio.Transport):
    """A client that takes everything and says nothing."""

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Drop `data`."""

    def close(self) -> None:
        """Do nothing: there is nobody to leave."""

    def get_write_buffer_size(self) -> int:
        """Return 0: nothing waits."""
        return 0

    def pause_reading(self) -> None:
        """Do nothing: there is nothing to read."""

    def resume_reading(self) -> None:
        """Do nothing: there is nothing to read."""
