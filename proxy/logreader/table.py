"""Access records in the table sluice.api_access_logs, which the control login may read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from proxy.errors import SluiceError
from proxy.keytool import Connection, Place, connect
from proxy.logreader.wanted import LOOKS_BACK, Wanted, as_text
from proxy.observe.rows import COLUMNS

LATE: Final = timedelta(seconds=60)
"""How late a row may come and still be seen by who follows: a row has the time at which its statement began, and is
written after its end."""

_MOST_SEEN: Final = 50_000
"""Rows of the last minute that are remembered as shown; a busier log is followed over a shorter time."""

_BATCH: Final = 2_000
_TIMEOUT: Final = 60.0

# How far back is looked, one after another, until there are enough: the newest are found without reading a whole day.
_STEPS: Final = (timedelta(minutes=1), timedelta(minutes=10), timedelta(hours=1), timedelta(hours=6))

_NAMES: Final = ", ".join(name for name, _ in COLUMNS)
_FROM: Final = "FROM sluice.api_access_logs WHERE"


class LogTable:
    """The table behind `place`, on its primary or else on a replica; connects when it is first asked."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._connection: Connection | None = None
        # The server's clock, less ours.
        self._ahead = timedelta()
        # What was shown, or is older than what is to be shown, and where the time begins that it covers.
        self._seen: dict[UUID, datetime] = {}
        self._floor = datetime.min.replace(tzinfo=UTC)

    async def newest(self, wanted: Wanted, limit: int) -> list[dict[str, Any]]:
        """Return the last `limit` records that are wanted, the oldest first."""
        connection = await self._connected()
        end = wanted.until or self._now()
        earliest = wanted.since or end - LOOKS_BACK
        rows: list[asyncpg.Record] = []
        for step in (*_STEPS, None):
            begin = earliest if step is None else max(earliest, end - step)
            condition, arguments = wanted.condition(begin)
            order = f"ORDER BY at DESC, id DESC LIMIT {limit:d}"
            rows = await connection.fetch(
                f"SELECT {_NAMES} {_FROM} {condition} {order}", *arguments, timeout=_TIMEOUT
            )
            if len(rows) >= limit or begin == earliest:
                break
        return [_record(row) for row in reversed(rows)]

    async def begin(self, wanted: Wanted) -> None:
        """Take what is there for shown: `more` gives what comes from now on."""
        connection = await self._connected()
        condition, arguments = wanted.condition(self._now() - _late(wanted))
        order = f"ORDER BY at DESC, id DESC LIMIT {_MOST_SEEN:d}"
        rows = await connection.fetch(
            f"SELECT id, at {_FROM} {condition} {order}", *arguments, timeout=_TIMEOUT
        )
        self._seen = {row["id"]: row["at"] for row in reversed(rows)}
        self._forget(wanted)

    def saw(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Note that `records` were shown."""
        self._seen.update((UUID(each["id"]), datetime.fromisoformat(each["at"])) for each in records)

    async def more(self, wanted: Wanted) -> list[dict[str, Any]]:
        """Return the wanted records that have come since the last call, by their time."""
        connection = await self._connected()
        self._forget(wanted)
        condition, arguments = wanted.condition(max(self._floor, wanted.since or self._floor))
        arguments.append(list(self._seen))
        unseen = f"id <> ALL (${len(arguments)}::uuid[]) ORDER BY at, id LIMIT {_BATCH:d}"
        rows = await connection.fetch(
            f"SELECT {_NAMES} {_FROM} {condition} AND {unseen}", *arguments, timeout=_TIMEOUT
        )
        self._seen.update((row["id"], row["at"]) for row in rows)
        return [_record(row) for row in rows]

    async def close(self) -> None:
        """Close the connection."""
        connection = self._connection
        self._connection = None
        if connection is not None:
            await connection.close(timeout=2.0)

    def lose(self) -> None:
        """Drop a connection on which something failed; the next question opens another."""
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None

    async def _connected(self) -> Connection:
        connection = self._connection
        if connection is None:
            connection = await connect(self._place, or_replica=True)
            self._connection = connection
            self._ahead = await connection.fetchval("SELECT clock_timestamp()") - datetime.now(UTC)
            try:
                await connection.fetch(f"SELECT {_FROM} false")
            except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
                message = "this database holds no sluice.api_access_logs; `pgsluice setup` makes it"
                raise SluiceError(message) from None
            except asyncpg.InsufficientPrivilegeError:
                raise SluiceError(
                    "this login may not read sluice.api_access_logs; `pgsluice migrate up` lets sluice_control"
                ) from None
        return connection

    def _now(self) -> datetime:
        return datetime.now(UTC) + self._ahead

    def _forget(self, wanted: Wanted) -> None:
        """Forget what is too old to be asked for again, and the oldest where there is too much."""
        self._floor = max(self._floor, self._now() - _late(wanted))
        if len(self._seen) > _MOST_SEEN:
            times = sorted(self._seen.values())
            self._floor = max(self._floor, times[len(times) - _MOST_SEEN // 2])
        self._seen = {row: at for row, at in self._seen.items() if at >= self._floor}


def _late(wanted: Wanted) -> timedelta:
    """Return how late a row may come: who asks for slow statements gets them when they are over."""
    return LATE + timedelta(seconds=2 * (wanted.slower or 0.0))


def _record(row: asyncpg.Record) -> dict[str, Any]:
    """Return a row as a line of the access log has it."""
    record: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, datetime):
            record[name] = as_text(value)
        elif isinstance(value, str | int | bool):
            record[name] = value
        elif value is not None:
            record[name] = str(value)
    return record
