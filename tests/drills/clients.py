"""Two drivers behind one interface: psycopg with the simple protocol, asyncpg with prepared statements."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

import asyncpg
import psycopg

from tests.drills.journal import CUT, REFUSED, SILENT
from tests.integration.support import Login

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds that a client waits for any answer before it gives up and closes its connection."""

Row = tuple[Any, ...]


class Failed(Exception):
    """What was asked failed: `sqlstate` says how, and `broken` whether the connection ended with it."""

    def __init__(self, sqlstate: str, told: str, broken: bool) -> None:
        super().__init__(f"{sqlstate}: {told}")
        self.sqlstate = sqlstate
        self.told = told
        self.broken = broken


class Client(Protocol):
    """A connection; `ask` fills whole numbers into {0}, {1} … of a statement. One without numbers returns no row."""

    @property
    def closed(self) -> bool:
        """Tell whether the connection has ended."""

    async def ask(self, statement: str, *numbers: int) -> Row:
        """Return the first row, () where there is none; raises Failed."""

    async def close(self) -> None:
        """Say goodbye."""


async def connect(login: Login, simple: bool) -> Client:
    """Log in; raises Failed."""
    client: _Psycopg | _Asyncpg = _Psycopg(login) if simple else _Asyncpg(login)
    try:
        await _in_time(client.open())
    except TimeoutError:
        raise Failed(SILENT, "no answer to a login", True) from None
    except (psycopg.Error, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise _failure(error, True) from error
    return client


class _Psycopg:
    """Sends each statement as one Query message, with the numbers written into it."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._connection: psycopg.AsyncConnection[Row] | None = None

    @property
    def closed(self) -> bool:
        return self._connection is None or self._connection.closed

    async def open(self) -> None:
        self._connection = await self._login.aconnect()

    async def ask(self, statement: str, *numbers: int) -> Row:
        connection = self._connection
        assert connection is not None
        try:
            return await _in_time(self._row(connection, statement.format(*numbers)))
        except TimeoutError:
            connection.pgconn.finish()
            raise Failed(SILENT, f"no answer to {statement}", True) from None
        except psycopg.Error as error:
            raise _failure(error, connection.closed) from error

    async def _row(self, connection: psycopg.AsyncConnection[Row], statement: str) -> Row:
        cursor = await connection.execute(statement.encode())
        return (await cursor.fetchone() or ()) if cursor.description else ()

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


class _Asyncpg:
    """Prepares each statement with numbers once on its connection; the others, without rows, as asyncpg sends BEGIN."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    @property
    def closed(self) -> bool:
        return self._connection is None or self._connection.is_closed()

    async def open(self) -> None:
        self._connection = await asyncpg.connect(**self._login.for_asyncpg(), timeout=PATIENCE)

    async def ask(self, statement: str, *numbers: int) -> Row:
        connection = self._connection
        assert connection is not None
        places = [f"${place}::int" for place in range(1, len(numbers) + 1)]
        try:
            if numbers:
                row = await _in_time(connection.fetchrow(statement.format(*places), *numbers))
            else:
                row = None
                await _in_time(connection.execute(statement))
        except TimeoutError:
            connection.terminate()
            raise Failed(SILENT, f"no answer to {statement}", True) from None
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise _failure(error, connection.is_closed()) from error
        except asyncpg.InternalClientError as error:
            # A FATAL error came between the answers to Parse and Bind, where asyncpg doesn't expect any.
            connection.terminate()
            raise Failed(CUT, str(error), True) from error
        return tuple(row) if row is not None else ()

    async def close(self) -> None:
        if self._connection is not None:
            # Closing waits for the other side.
            self._connection.terminate()


async def _in_time(asking: Coroutine[Any, Any, T]) -> T:
    """Await `asking` for as long as a client waits; raises TimeoutError.

    asyncio.timeout would wait for what drivers do when they are cancelled, which may take for ever.
    """
    task = asyncio.ensure_future(asking)
    done, _ = await asyncio.wait((task,), timeout=PATIENCE)
    if not done:
        task.cancel()
        raise TimeoutError
    return task.result()


def _failure(error: Exception, broken: bool) -> Failed:
    sqlstate = getattr(error, "sqlstate", None)
    # asyncpg gives this class to a connection that ended without a word.
    if sqlstate is None or isinstance(error, asyncpg.ConnectionDoesNotExistError):
        # psycopg knows no SQLSTATE of a refused login.
        sqlstate = REFUSED if "FATAL" in str(error) else CUT
    return Failed(sqlstate, str(error).strip(), broken)
