"""Who asks, and a session for them: what a login is to clients of the wire protocol."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, cast

from starlette.requests import Request

from proxy.api.inner import InnerClient, MessageTooLong
from proxy.api.problems import ApiError, from_client_error, from_fields, limited
from proxy.auth.identity import subject
from proxy.auth.key import Key
from proxy.errors import (
    ClientError,
    DatabaseDisabled,
    InsufficientPermissions,
    InvalidApiKey,
    InvalidParameter,
    PoolExhausted,
    UnknownDatabase,
)
from proxy.http.access import Access
from proxy.http.dashboard import key_of
from proxy.observe.record import session_part
from proxy.query.facts import POOL_PARAMETER
from proxy.query.route import pool_problem
from proxy.session.database import Database
from proxy.session.gate import Gate
from proxy.session.session import Session
from proxy.tasks import spawn, stop
from proxy.wire.codes import (
    BE_COMMAND_COMPLETE,
    BE_COPY_BOTH,
    BE_COPY_IN,
    BE_COPY_OUT,
    BE_DATA_ROW,
    BE_ERROR,
    BE_READY,
)
from proxy.wire.messages import error_fields, first_columns

APPLICATION: Final = "http"
"""What the access log calls these clients."""

MOST_SESSIONS: Final = 80
"""Requests that may be at work at a time: 20 of the server's 100 connections are left to scrapes and probes."""

PATIENCE: Final = 5.0
"""Seconds in which a cancelled statement has to end before its server connection is given up, as for other clients."""

STATEMENT: Final = 30.0
"""Seconds that a statement of the API's own may take."""

MOST_WRITERS: Final = 10_000
"""Users whose last write is remembered."""

# Times and dates are written alike whatever the servers' configuration says.
_SETTINGS: Final = {"application_name": APPLICATION, "datestyle": "ISO, YMD", "timezone": "UTC"}
_COPIES: Final = (BE_COPY_IN, BE_COPY_OUT, BE_COPY_BOTH)


@dataclass(frozen=True)
class Caller:
    """A key that has proven itself, and the database that it is for."""

    key: Key
    database: Database
    address: str
    port: int
    log_part: bytes

    def require(self, *permissions: str) -> None:
        """Raise ApiError unless the key has all of these; what is refused is recorded, as it is for a statement."""
        missing = [each for each in permissions if each not in self.key.permissions]
        if not missing or self.key.is_admin:
            return
        message = f"this needs an API key with the permission {' and '.join(missing)}"
        error = InsufficientPermissions(message)
        self.database.stats.denials.add(error.code)
        self.database.access.event(
            "denied", time.time(), self.log_part, reason=message, sqlstate=error.sqlstate, code=error.code
        )
        raise from_client_error(error)


class Talk:
    """A session for the time of one request: asks statements one after the other."""

    def __init__(self, entrance: Entrance, caller: Caller, client: InnerClient) -> None:
        self._entrance = entrance
        self._caller = caller
        self.client = client
        self._overdue = False
        self._gave_up = False
        self._clocks: list[asyncio.TimerHandle] = []
        # The last error that came: behind one that ends the session nothing else will.
        self._problem: ApiError | None = None

    async def ask(
        self, sql: str, *parameters: str | None, timeout: float = STATEMENT
    ) -> list[list[bytes | None]]:
        """Return the rows of one statement; raises ApiError, with the server's or the proxy's reason."""
        rows: list[list[bytes | None]] = []
        problem: ApiError | None = None
        self.client.send(sql, parameters)
        self.start_clock(timeout)
        while True:
            kind, body = await self.next()
            if kind == BE_DATA_ROW:
                rows.append(columns_of(body))
            elif kind == BE_ERROR:
                problem = self.told(from_fields(fields_of(body)))
            elif kind == BE_READY:
                self.stop_clock()
                if problem is not None:
                    raise problem
                return rows

    async def next(self) -> tuple[int, bytes]:
        """Return the next message of what was asked; raises ApiError where there will be none."""
        try:
            kind, body = await self.client.take()
        except MessageTooLong:
            raise ApiError(422, "RESULT_TOO_LARGE", "a row of the result is too large for HTTP") from None
        except ClientError as error:
            if self._gave_up:
                raise self._too_late() from None
            if self._problem is not None:
                raise self._problem from None
            raise from_client_error(error) from None
        if kind in _COPIES:
            raise ApiError(400, "FEATURE_NOT_SUPPORTED", "COPY has no place here: use psql or a driver")
        return kind, body

    def told(self, problem: ApiError) -> ApiError:
        """Return `problem` with what only this request knows: the key's rate, and that its time was up."""
        if problem.status == 429:
            key, bucket = self._caller.key, self.client.session.bucket
            wait = bucket.take(time.monotonic(), 0) if bucket is not None else 1.0
            problem.headers |= limited(key.rate_limit_per_minute, wait)
            problem.detail = f"{key.rate_limit_per_minute} statements per minute"
        elif problem.status == 504 and self._overdue:
            problem = self._too_late()
        self._problem = problem
        return problem

    @staticmethod
    def _too_late() -> ApiError:
        return ApiError(504, "QUERY_TIMEOUT", "the statement took too long, and was cancelled")

    def start_clock(self, seconds: float) -> None:
        """Cancel what is asked on the server once `seconds` are over, unless the clock is stopped before."""
        self.stop_clock()
        loop = asyncio.get_running_loop()
        self._clocks = [
            loop.call_later(seconds, self._expire),
            loop.call_later(seconds + PATIENCE, self._give_up),
        ]

    def stop_clock(self) -> None:
        """Let what is asked take its time."""
        for clock in self._clocks:
            clock.cancel()

    def cancel(self) -> None:
        """Cancel what is under way, as a CancelRequest does."""
        session = self.client.session
        if not session.ended:
            spawn(self._cancel(session.pid, session.secret), "cancel a statement of HTTP")

    async def _cancel(self, pid: int, secret: bytes) -> None:
        await self._entrance.gate.cancel(pid, secret)

    def _expire(self) -> None:
        """Cancel what is under way: its time is up."""
        self._overdue = True
        self.cancel()

    def _give_up(self) -> None:
        """End the session: what was cancelled doesn't end."""
        self._gave_up = True
        self.client.leave()


class Entrance:
    """Checks keys by `access`, and opens sessions as `gate` admits them."""

    def __init__(self, gate: Gate, access: Access) -> None:
        self.gate = gate
        self._access = access
        self._at_work = 0
        # When users last wrote, on the clock of sessions: what they read next must have that.
        self._writes: OrderedDict[tuple[str, str], float] = OrderedDict()

    async def admit(self, request: Request) -> Caller:
        """Return who asks, by the key of the request; for `?database=`, or the first that knows the key.

        Raises ApiError.
        """
        address, port = request.client if request.client is not None else ("", 0)
        try:
            keys = await self._access.keys(key_of(request), address)
            asked = request.query_params.get("database")
            name = asked if asked is not None else next(iter(keys))
            database = self.gate.databases.get(name) if name in keys else None
            if database is None:
                raise UnknownDatabase("this key knows no database of that name", hint=", ".join(keys))
        except ClientError as error:
            raise from_client_error(error) from None
        key = keys[name]
        part = session_part(key.id, key.user_id, address, APPLICATION, name)
        return Caller(key, database, address, port, part)

    @asynccontextmanager
    async def talk(self, caller: Caller, request: Request) -> AsyncIterator[Talk]:
        """Open a session of `caller` for the time of a `with` block, or until the peer of `request` is gone."""
        talk = await self.open(caller)
        try:
            async with watched(request, talk):
                yield talk
        finally:
            self.close(talk, caller)

    async def open(self, caller: Caller, pool: str = "") -> Talk:
        """Open a session of `caller`, which `close` has to end. Raises ApiError."""
        key = caller.key
        try:
            key = await self._still_valid(caller)
            self._check_room(caller)
            if problem := pool_problem(pool, key.is_admin):
                raise InvalidParameter(problem)
            talk = self._start(caller, key, pool)
        except ClientError as error:
            raise from_client_error(error) from None
        self._at_work += 1
        return talk

    def close(self, talk: Talk, caller: Caller) -> None:
        """End a session, and what still runs for it."""
        self._at_work -= 1
        talk.stop_clock()
        session = talk.client.session
        if session.last_write > 0.0:
            who = (caller.database.name, caller.key.user_id)
            self._writes[who] = session.last_write
            self._writes.move_to_end(who)
            if len(self._writes) > MOST_WRITERS:
                self._writes.popitem(last=False)
        talk.client.leave()

    async def _still_valid(self, caller: Caller) -> Key:
        """Return the key as it is now: it may have been revoked while the body was read."""
        store = self.gate.keys.get(caller.database.name)
        if store is None:
            # A reload has taken it away.
            raise UnknownDatabase()
        key = await store.get(caller.key.id)
        if key is None or not key.valid(time.time()) or key.identity != caller.key.identity:
            raise InvalidApiKey("revoked")
        return key

    def _check_room(self, caller: Caller) -> None:
        self.gate.check_room()
        if caller.database.name in self.gate.disabled:
            raise DatabaseDisabled()
        if self._at_work >= MOST_SESSIONS:
            raise PoolExhausted()

    def _start(self, caller: Caller, key: Key, pool: str) -> Talk:
        database = caller.database
        settings = {**_SETTINGS, POOL_PARAMETER: pool} if pool else _SETTINGS
        client = InnerClient(caller.address, caller.port)
        session = Session(
            database,
            cast(asyncio.Transport, client),
            key,
            subject(key.user_id, key.id, key.permissions_sorted),
            database.profiles.of(settings),
            pool,
            caller.log_part,
            self.gate.bucket(key),
        )
        client.attach(session)
        session.last_write = self._writes.get((database.name, key.user_id), 0.0)
        self.gate.sessions.add(session)
        return Talk(self, caller, client)


@asynccontextmanager
async def watched(request: Request, talk: Talk) -> AsyncIterator[None]:
    """End the session within a `with` block once the peer of `request` is gone."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        talk.client.leave()

    watcher = spawn(watch(), "watch an HTTP client")
    try:
        yield
    finally:
        await stop(watcher)


def fields_of(body: bytes) -> dict[str, str]:
    """Return the fields of an ErrorResponse by their codes, from what stands behind its header."""
    return error_fields(b"E\0\0\0\0" + body, 0, len(body) + 5)


def columns_of(body: bytes) -> list[bytes | None]:
    """Return the columns of a DataRow, from what stands behind its header."""
    return first_columns(b"D\0\0\0\0" + body, 0, len(body) + 5)


def completed(kind: int, body: bytes) -> str:
    """Return the tag of a CommandComplete, "" for another message."""
    return body[:-1].decode("utf-8", "replace") if kind == BE_COMMAND_COMPLETE else ""


def texts(row: Sequence[bytes | None]) -> list[str]:
    """Return columns as text, "" for NULL."""
    return ["" if value is None else value.decode("utf-8", "replace") for value in row]
