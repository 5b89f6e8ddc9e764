"""The control plane: asyncpg connections under the control login, one small pool for each host.

Keys, signing keys, health and the access log go this way, never a client's statement; and nothing that a
client chose (a search_path, an encoding) reaches these connections.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import asyncpg

from proxy.errors import UpstreamUnavailable
from proxy.transport.asking import Security
from proxy.transport.tls import explain
from proxy.transport.way import Way

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = logging.getLogger(__name__)

_SETTINGS = {"search_path": "pg_catalog", "application_name": "pgsluice control"}
_COMMAND_TIMEOUT = 10.0

# What asyncpg raises where a server or the network fails. The last one says that the connection got a server's FATAL
# error while it was about to ask.
FAILURES = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


class Control:
    """Control connections to one host."""

    def __init__(
        self,
        way: Way,
        database: str,
        user: str,
        password: str,
        connect_timeout: float,
    ) -> None:
        self.way = way
        self._arguments: dict[str, Any] = {
            "database": database,
            "user": user,
            "password": password,
            "timeout": connect_timeout or None,
            "server_settings": _SETTINGS,
            "command_timeout": _COMMAND_TIMEOUT,
        }
        self._idle: list[asyncpg.Connection[Any]] = []
        self._is_retired = False
        self._room = asyncio.Semaphore(4)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection[Any]]:
        """Borrow a connection; raises UpstreamUnavailable where the host does not answer.

        One on which anything fails is closed, not kept.
        """
        async with self._room:
            connection = await self._take()
            try:
                yield connection
            except FAILURES as error:
                connection.terminate()
                raise UpstreamUnavailable(extra=f"host={self.way.address}: {describe(error)}") from error
            except BaseException:
                connection.terminate()
                raise
            if self._is_retired:
                connection.terminate()
            else:
                self._idle.append(connection)

    async def listen(
        self, channel: str, heard: Callable[[str], None], begun: Callable[[], None] | None = None
    ) -> None:
        """Call `heard` with each payload notified on `channel`, until the connection ends.

        `begun` is called when nothing is missed any more. Raises UpstreamUnavailable where it doesn't come about.
        """
        connection = await self._connect()
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: ended.set())
        try:
            await connection.add_listener(
                channel, lambda _connection, _pid, _channel, payload: heard(str(payload))
            )
            if begun is not None:
                begun()
            await ended.wait()
        except FAILURES as error:
            raise UpstreamUnavailable(extra=f"host={self.way.address}: {describe(error)}") from error
        finally:
            connection.terminate()

    def forget(self) -> None:
        """Close every idle connection: the host's name means another address now."""
        while self._idle:
            self._idle.pop().terminate()

    def retire(self) -> None:
        """Close every idle connection, and those that are lent as they come back."""
        self._is_retired = True
        self.forget()

    async def close(self) -> None:
        """Close every idle connection."""
        self.forget()

    async def _take(self) -> asyncpg.Connection[Any]:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await self._connect()

    async def _connect(self) -> asyncpg.Connection[Any]:
        try:
            return await connect(self.way, **self._arguments)
        except FAILURES as error:
            raise UpstreamUnavailable(extra=f"host={self.way.address}: {describe(error)}") from error


async def connect(way: Way, **arguments: Any) -> asyncpg.Connection[Any]:
    """Return a connection of asyncpg's over `way`; `arguments` are its own. Raises what it raises: see FAILURES."""
    connection: asyncpg.Connection[Any] = await asyncpg.connect(
        host=way.host, port=way.port, ssl=_for_asyncpg(way.tls), loop=way.loop(), **arguments
    )
    return connection


def _for_asyncpg(tls: Security) -> ssl.SSLContext | Literal[False, "prefer"]:
    """Return what asyncpg's `ssl` has to be for a connection as `tls` says: a context means that it must be."""
    if tls.context is None:
        return False
    return "prefer" if tls.mode == "prefer" else tls.context


def describe(error: BaseException) -> str:
    """Return what went wrong in a few words; some errors have no text of their own."""
    if isinstance(error, ssl.SSLError):
        return explain(error)
    if isinstance(error, (asyncpg.InternalClientError, asyncpg.ConnectionDoesNotExistError)):
        # Their texts are about asyncpg's own states.
        return "the connection was lost"
    return str(error) or type(error).__name__
