"""Access records into sluice.api_access_logs, over the control connections of the primary.

What comes for the first time is COPYed. What may be there already (an attempt without an answer, or found in the spool
by the next process) goes by a temporary table and ON CONFLICT DO NOTHING, so that no row is there twice.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final, cast

import asyncpg

from proxy.errors import UpstreamUnavailable
from proxy.observe.rows import COLUMNS
from proxy.upstream.control import Control

log = logging.getLogger(__name__)

TABLE: Final = "api_access_logs"
_REPLAYED: Final = "sluice_replayed"

_COLUMNS: Final = ", ".join(f"{name} {kind}" for name, kind in COLUMNS)
_CREATE: Final = f"CREATE TEMPORARY TABLE {_REPLAYED} ({_COLUMNS}) ON COMMIT DROP"
# Rows from before the oldest partition are older than what is kept. Where days between have no partition, one is made.
_SPAN: Final = f"""
WITH kept (since) AS (
    SELECT coalesce(to_date(min(right(c.relname, 8)), 'YYYYMMDD'), '-infinity') FROM pg_catalog.pg_inherits i
    JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'sluice.{TABLE}'::regclass AND c.relname ~ '^{TABLE}_[0-9]{{8}}$')
SELECT k.since::timestamp AT TIME ZONE 'UTC' AS since,
       count(*) FILTER (WHERE r.at < k.since::timestamp AT TIME ZONE 'UTC') AS outlived,
       least(366, greatest(1, (now() AT TIME ZONE 'UTC')::date - (min(r.at)
           FILTER (WHERE r.at >= k.since::timestamp AT TIME ZONE 'UTC') AT TIME ZONE 'UTC')::date)) AS days_back
FROM kept k LEFT JOIN pg_temp.{_REPLAYED} r ON true GROUP BY k.since
"""
_PARTITIONS: Final = "SELECT sluice.ensure_partitions(7, $1)"
_NAMES: Final = ", ".join(name for name, _ in COLUMNS)
_INSERT: Final = f"""
INSERT INTO sluice.{TABLE} ({_NAMES}) SELECT {_NAMES} FROM pg_temp.{_REPLAYED} WHERE at >= $1
ON CONFLICT DO NOTHING
"""


class AccessTable:
    """The table on the primary; `control` returns its control connections, or raises NoPrimary."""

    def __init__(self, control: Callable[[], Control]) -> None:
        self._control = control
        # Rows that were older than what the table keeps.
        self.outlived = 0

    async def write(self, payload: Iterable[memoryview], again: bool) -> None:
        """Append the rows of `payload`, a whole binary COPY in pieces; those that are there stay as they are.

        Without `again` none of them is there. Raises what asyncpg raises, for its SQLSTATE tells whether trying again
        makes sense.
        """
        try:
            async with self._control().connection() as connection:
                if again:
                    await self._replay(connection, payload)
                else:
                    await _copy(connection, TABLE, "sluice", payload)
        except UpstreamUnavailable as error:
            raise (error.__cause__ or error) from None

    async def _replay(self, connection: asyncpg.Connection[Any], payload: Iterable[memoryview]) -> None:
        async with connection.transaction():
            await connection.execute(_CREATE)
            await _copy(connection, _REPLAYED, "pg_temp", payload)
            span = await connection.fetchrow(_SPAN)
            assert span is not None
            if span["days_back"] is not None:
                await connection.fetchval(_PARTITIONS, span["days_back"])
            await connection.execute(_INSERT, span["since"])
        if span["outlived"]:
            self.outlived += span["outlived"]
            log.warning(
                "access log: %d records from before %s are older than what is kept",
                span["outlived"],
                span["since"],
            )


async def _copy(
    connection: asyncpg.Connection[Any], table: str, schema: str, payload: Iterable[memoryview]
) -> None:
    # asyncpg would read a file object in a thread; a generator costs half of that. Its messages take any buffer,
    # although it asks for bytes.
    source = cast("AsyncIterator[bytes]", _each(payload))
    await connection.copy_to_table(table, schema_name=schema, source=source, format="binary")


async def _each(pieces: Iterable[memoryview]) -> AsyncIterator[memoryview]:
    for piece in pieces:
        yield piece
