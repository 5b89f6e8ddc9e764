"""Trying session parameters on a server before a login completes, so that a wrong one fails there."""

from __future__ import annotations

import asyncio
import time

from proxy.errors import HostUnavailable, InvalidParameter
from proxy.query.parameters import Profile
from proxy.session.database import Database
from proxy.upstream.errand import Ask

_PAUSED = 0.05


_AGAIN = 0.5
"""Seconds until a login is tried once more on a server: more than the monitor takes for a look after an alarm."""


async def try_on_server(database: Database, profile: Profile) -> dict[bytes, bytes]:
    """Return what a server reports of itself under `profile`.

    Raises the server's own complaint where it does not accept a value, or what keeps us from a server.
    """
    for _ in range(database.failover_attempts - 1):
        try:
            return await _try_once(database, profile)
        except HostUnavailable:
            # The pool that failed is passed over; where there is no other, the monitor looks meanwhile.
            await asyncio.sleep(_AGAIN)
    return await _try_once(database, profile)


async def _try_once(database: Database, profile: Profile) -> dict[bytes, bytes]:
    while database.cluster.paused:
        # As a statement waits; the login's own deadline ends it.
        await asyncio.sleep(_PAUSED)
    pool = database.cluster.pool_for("readonly", True, 0.0)
    calls = [
        f"pg_catalog.set_config({_literal(name)}, {_literal(value)}, false)" for name, value in profile.values
    ]
    sql = "SELECT " + ", ".join(calls or ["1"])
    answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(errand: Ask) -> None:
        # Here, and not behind the await: the login may have given up by then.
        if errand.server is not None and errand.parameters:
            pool.came_late(errand.server, time.monotonic())
        if not answered.done():
            answered.set_result(None)

    errand = Ask(sql.encode(), finish)
    server = pool.take(errand, time.monotonic())
    if server is not None:
        errand.granted(server)
    try:
        await answered
    finally:
        pool.leave(errand)
        if errand.server is not None and answered.cancelled():
            pool.abandon(errand.server, time.monotonic())
    if errand.failure is not None:
        raise errand.failure
    if errand.error:
        raise InvalidParameter(errand.error)
    if len(database.reports) > 1000:
        database.reports.clear()
    database.reports[profile] = errand.parameters
    return errand.parameters


def _literal(text: str) -> str:
    """Return `text` as a string constant (server connections have standard_conforming_strings on)."""
    return "'" + text.replace("'", "''") + "'"
