"""The admin console: one client of it, from its login on.

Commands come as simple queries, or prepared; each is authorised by itself. What changes something is recorded in
the access log, and so is what is refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from proxy.admin import answers
from proxy.admin.commands import NOTHING, SHOW, VALUE, Command, parse
from proxy.admin.commands import ROUTE as ROUTE_VERB
from proxy.admin.operations import carry_out
from proxy.admin.prepared import Portal, Prepared
from proxy.admin.showing import HELP, SERVER_VERSION, Showing, columns_of
from proxy.admin.site import Site
from proxy.errors import (
    ClientError,
    CommandCancelled,
    InsufficientPermissions,
    ProtocolViolation,
    RateLimitExceeded,
)
from proxy.session.gate import Entrant
from proxy.session.sessions import Visitor
from proxy.tasks import spawn
from proxy.wire.codes import (
    FE_BIND,
    FE_CLOSE,
    FE_DESCRIBE,
    FE_EXECUTE,
    FE_FLUSH,
    FE_PARSE,
    FE_QUERY,
    FE_SYNC,
    FE_TERMINATE,
    HEADER,
    MAX_HELD,
)
from proxy.wire.messages import (
    EMPTY_QUERY,
    READY_IDLE,
    command_complete,
    error_response,
)

log = logging.getLogger(__name__)

READS: Final = "read:metrics"

MAX_WAITING: Final = 4 * MAX_HELD
"""Bytes that a client may send ahead of what is answered."""


class Console(Showing):
    """What all clients of the console share."""

    def enter(self, entrant: Entrant) -> ConsoleClient:
        """Return what serves a client that has logged in."""
        return ConsoleClient(self, entrant)


class ConsoleClient:
    """One client; a transport's protocol from its login on."""

    def __init__(self, console: Console, entrant: Entrant) -> None:
        self.key = entrant.key
        self.transport = entrant.transport
        self.log_part = entrant.log_part
        self.connected_at = self.active_at = time.time()
        self.pid = 0
        self.secret = b""
        self.on_end: Callable[[Visitor], None] | None = None
        self.reports: dict[bytes, bytes] = {
            b"server_version": SERVER_VERSION.encode(),
            b"server_encoding": b"UTF8",
            b"client_encoding": b"UTF8",
            b"application_name": entrant.application_name.encode(),
            b"is_superuser": b"on" if entrant.key.is_admin else b"off",
            b"DateStyle": b"ISO",
            b"IntervalStyle": b"postgres",
            b"TimeZone": b"GMT",
            b"integer_datetimes": b"on",
            b"standard_conforming_strings": b"on",
            b"default_transaction_read_only": b"off",
            b"in_hot_standby": b"off",
        }
        self._console = console
        self._site = console.site
        self._database = entrant.database
        self._prepared = Prepared()
        self._skips_to_sync = False
        self._buffer = b""
        self._reading_paused = False
        self._work: asyncio.Task[None] | None = None
        # What a cancel request ends: a command that waits.
        self._waiting: asyncio.Task[str | ClientError] | None = None
        self._cancelled = False
        self._ended = False
        self._drained = asyncio.Event()
        self._drained.set()

    # -- protocol methods

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        if self._ended:
            return
        self._buffer += data
        self._site.received += len(data)
        if self._work is None or self._work.done():
            self._work = spawn(self._serve(), "admin console")
        elif len(self._buffer) > MAX_WAITING and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """Let the transport close: a client that stops sending is gone."""
        return False

    def connection_lost(self, failure: Exception | None) -> None:
        """End what is under way: a PAUSE that still waits is taken back."""
        self._end()

    def pause_writing(self) -> None:
        """Learn that the client does not read as fast as its answers come."""
        self._drained.clear()

    def resume_writing(self) -> None:
        """Learn that the client reads again."""
        self._drained.set()

    # -- what others may ask of it

    def cancel(self) -> None:
        """Cancel the command that waits."""
        if self._waiting is not None:
            self._cancelled = True
            self._waiting.cancel()

    def idle(self) -> bool:
        """Tell whether nothing is under way, so that a drain may end it."""
        return self._work is None or self._work.done()

    def fatal(self, error: ClientError) -> None:
        """Tell the client why, and end it."""
        if not self._ended:
            self.transport.write(error_response(error, True))
            self._end()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._drained.set()
        self.transport.close()
        if self._waiting is not None:
            self._waiting.cancel()
        if self.on_end is not None:
            self.on_end(self)

    # -- messages

    async def _serve(self) -> None:
        """Answer whole messages until there are none."""
        try:
            while not self._ended and (taken := self._next()) is not None:
                self.active_at = time.time()
                await self._answer(*taken)
                await self._drained.wait()
        except ProtocolViolation as error:
            self.fatal(error)
        except Exception:
            log.exception("the admin console failed its client %d", self.pid)
            self.fatal(ClientError())

    def _next(self) -> tuple[int, bytes] | None:
        """Return type and body of the next message that is all there."""
        buffer = self._buffer
        if len(buffer) < HEADER:
            return None
        length = int.from_bytes(buffer[1:HEADER], "big", signed=True)
        if length < 4 or length > MAX_HELD:
            raise ProtocolViolation("invalid message length on the admin console")
        if len(buffer) <= length:
            return None
        self._buffer = buffer[length + 1 :]
        if self._reading_paused and len(self._buffer) <= MAX_WAITING:
            self._reading_paused = False
            self.transport.resume_reading()
        return buffer[0], buffer[HEADER : length + 1]

    async def _answer(self, kind: int, body: bytes) -> None:
        if kind == FE_TERMINATE:
            self._end()
        elif kind == FE_SYNC:
            self._skips_to_sync = False
            self._prepared.end_portals()
            self._write(READY_IDLE)
        elif self._skips_to_sync or kind == FE_FLUSH:
            return
        elif kind == FE_QUERY:
            await self._query(body)
        elif kind in (FE_PARSE, FE_BIND, FE_DESCRIBE, FE_EXECUTE, FE_CLOSE):
            try:
                await self._extended(kind, body)
            except ProtocolViolation:
                raise
            except ClientError as error:
                self._skips_to_sync = True
                self._write(error_response(error))
        else:
            raise ProtocolViolation(f"invalid frontend message type {kind} on the admin console")

    async def _query(self, body: bytes) -> None:
        if body.find(b"\0") != len(body) - 1:
            raise ProtocolViolation("invalid string in message")
        try:
            commands = parse(body[:-1].decode("utf-8", "replace"))
            if not commands:
                self._write(EMPTY_QUERY)
            for command in commands:
                await self._run(command)
        except ClientError as error:
            self._write(error_response(error))
        self._write(READY_IDLE)

    async def _extended(self, kind: int, body: bytes) -> None:
        """Take a message of the extended protocol: commands have no parameters, and come whole."""
        prepared = self._prepared
        if kind == FE_PARSE:
            self._write(prepared.parse(body))
        elif kind == FE_BIND:
            self._write(prepared.bind(body))
        elif kind == FE_CLOSE:
            self._write(prepared.close(body))
        elif kind == FE_DESCRIBE:
            self._write(prepared.describe(body, columns_of))
        else:
            portal = prepared.portal(body)
            if portal.command is None:
                self._write(EMPTY_QUERY)
            else:
                await self._run(portal.command, portal)

    # -- commands

    async def _run(self, command: Command, portal: Portal | None = None) -> None:
        """Do one command and answer it; raises ClientError."""
        started = time.monotonic()
        site = self._site
        site.commands += 1
        try:
            await self._authorise(command)
            await self._do(command, portal)
        except ClientError as error:
            if not command.is_free and (command.needs_admin or isinstance(error, InsufficientPermissions)):
                self._record(command, started, error)
            raise
        finally:
            site.command_us += int((time.monotonic() - started) * 1e6)
        if command.needs_admin:
            self._record(command, started)

    async def _authorise(self, command: Command) -> None:
        key = self.key
        if (wait := await self._site.gate.take(key)) > 0.0:
            raise RateLimitExceeded(
                extra=f"limit={key.rate_limit_per_minute} per minute",
                hint=f"Try again in {wait:.1f} seconds.",
            )
        if command.is_free or key.is_admin or (not command.needs_admin and READS in key.permissions):
            return
        needed = "admin" if command.needs_admin else f"{READS} or admin"
        raise InsufficientPermissions(
            f"{command.verb.upper()} needs the permission {needed}", extra=f"key={key.id}"
        )

    async def _do(self, command: Command, portal: Portal | None) -> None:
        verb = command.verb
        if verb == NOTHING:
            self._write(command_complete(command.subject.encode()))
        elif verb == SHOW and command.subject == "help":
            self._write(answers.notice("Console usage", HELP) + command_complete(b"SHOW"))
        elif verb in (SHOW, ROUTE_VERB, VALUE):
            shown = (
                self._console.value(command, self._place())
                if verb == VALUE
                else await self._console.shown(command)
            )
            if portal is None:
                self._write(answers.row_description(shown.columns))
            for part in answers.rows(shown, portal.formats if portal is not None else ()):
                self._write(part)
                await asyncio.sleep(0)
                await self._drained.wait()
        else:
            told = await self._carry_out(command)
            self._write((answers.notice(told) if told else b"") + command_complete(verb.upper().encode()))

    async def _carry_out(self, command: Command) -> str:
        """Do what may take long in a task of its own, so that a cancel request can end it."""
        log.info("%s by key %s", command.summary, self.key.id)
        self._cancelled = False
        self._waiting = spawn(_outcome(command, self._site), f"admin console: {command.verb}")
        try:
            outcome = await self._waiting
        except asyncio.CancelledError:
            if self._cancelled:
                raise CommandCancelled() from None
            raise
        finally:
            self._waiting = None
        if isinstance(outcome, ClientError):
            raise outcome
        return outcome

    def _place(self) -> dict[str, str | int]:
        """Return what a client is told of itself."""
        who = dict.fromkeys(("current_user", "session_user", "user"), self.key.id)
        return {**who, "current_database()": self._database, "pg_backend_pid()": self.pid}

    def _record(self, command: Command, started: float, error: ClientError | None = None) -> None:
        self._site.access.event(
            "admin",
            time.time(),
            self.log_part,
            reason=error.message if error is not None else "",
            sqlstate=error.sqlstate if error is not None else "",
            code=error.code if error is not None else "",
            statement=command.summary,
            duration_us=int((time.monotonic() - started) * 1e6),
        )

    def _write(self, data: bytes) -> None:
        if not self._ended:
            self._site.sent += len(data)
            self.transport.write(data)


async def _outcome(command: Command, site: Site) -> str | ClientError:
    """Carry out a command; an error that its client is to be told is no failure of the task."""
    try:
        return await carry_out(command, site)
    except ClientError as error:
        return error
