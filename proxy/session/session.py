"""A client's session after its login: the recipe by which each statement is answered.

    bytes → unit → intent → permission → rate limit → target → server connection → one write
    replies → client; ReadyForQuery `I` → connection back to its pool, record, counters

Nothing here awaits. A session that has to wait (for a server connection, for its client to read, for a server
to take more) keeps what came in and reads no further; whoever ends the wait calls back.
"""

from __future__ import annotations

import time
from typing import Final, final

from librt.strings import read_i32_be
from mypy_extensions import i64

from proxy.errors import (
    ClientError,
    FeatureNotSupported,
    InsufficientPermissions,
    InvalidParameter,
    ProtocolViolation,
    RateLimitExceeded,
)
from proxy.query.intent import DDL, READ, Intent
from proxy.query.prepared import Statement
from proxy.query.route import pool_problem, refusal
from proxy.query.traceparent import traceparent_of
from proxy.session.collect import STATEMENT, read_message
from proxy.session.deferral import NONE
from proxy.session.lending import Lending
from proxy.session.renaming import Edit, rewrite
from proxy.session.single import read_single
from proxy.session.state import FOR_CLIENT, FOR_IDLE, FOR_PERMIT, LOOSE, LOOSE_ENDED
from proxy.session.unit import MAX_BYTES, Message
from proxy.wire.codes import (
    FE_BIND,
    FE_CLOSE,
    FE_COPY_DATA,
    FE_COPY_DONE,
    FE_COPY_FAIL,
    FE_DESCRIBE,
    FE_EXECUTE,
    FE_FLUSH,
    FE_FUNCTION_CALL,
    FE_PARSE,
    FE_PASSWORD,
    FE_QUERY,
    FE_SYNC,
    FE_TERMINATE,
    HEADER,
    MAX_HELD,
    MAX_MESSAGE,
    MAX_SMALL_MESSAGE,
)
from proxy.wire.messages import (
    READY_FAILED,
    READY_IDLE,
    TERMINATE,
    query,
)
from proxy.wire.reply import COPY_END, FORWARD, QUERY, Reply

MAX_PENDING: Final = 65_536
"""Input that is kept while a session waits, before its socket is no longer read."""

MAX_PARSE: Final = 16 * 1024 * 1024
"""A Parse is held whole, because it may have to be sent again; a longer text fits a simple query."""

# What a header alone may tell: types that there are, that hold a name at most, that hold nothing.
_EMPTY: Final = frozenset([FE_SYNC, FE_FLUSH])
_SMALL: Final = frozenset([FE_CLOSE, FE_DESCRIBE, FE_EXECUTE, FE_COPY_DONE, FE_COPY_FAIL, FE_TERMINATE])
_KNOWN: Final = _EMPTY | _SMALL | {FE_BIND, FE_COPY_DATA, FE_FUNCTION_CALL, FE_PARSE, FE_PASSWORD, FE_QUERY}


_TOO_SOON: Final = (
    "behind a transaction that called an unknown function this API key has to wait for the answer"
)


@final
class Session(Lending):
    """One client; a transport's protocol from its login on."""

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        if self.ended or self.ending:
            return
        self.active_at = self.clock()
        if self.waits != 0:
            self._put_off(data)
            return
        if self.pending:
            data = self.pending + data
            self.pending = b""
        self._feed(data, self.active_at)

    def eof_received(self) -> bool:
        """Let the transport close: a client that stops sending is gone."""
        return False

    def connection_lost(self, failure: Exception | None) -> None:
        """Clean up behind a client that is gone."""
        self._end()

    def pause_writing(self) -> None:
        """Learn that the client does not read as fast as its answers come."""
        self.waits |= FOR_CLIENT
        if self.filling is not None:
            # Others would wait for as long as it doesn't read.
            self.spoil()
        server = self.server
        if server is not None:
            server.pause_reading()

    def resume_writing(self) -> None:
        """Learn that the client reads again."""
        self.waits &= ~FOR_CLIENT
        server = self.server
        if server is not None:
            server.resume_reading()
        self.go_on(time.monotonic())

    def _feed(self, data: bytes, now: float) -> None:
        """Work through the client's messages; what cannot be worked on yet stays in `pending`."""
        try:
            pos = self._messages(data, now)
        except ProtocolViolation as error:
            self._terminate(error)
            return
        if not self.ended and pos < len(data):
            # A message that was put behind stands before what came after it.
            if self.waits != 0:
                self._put_off(data[pos:])
            else:
                self.pending += data[pos:]

    def _put_off(self, data: bytes) -> None:
        """Keep input while the session waits; behind a Terminate nothing is read, and so no end of file seen.

        What stands before it completes (PostgreSQL reads in order), though its client is gone by then.
        """
        self.pending += data
        if len(self.pending) > MAX_PENDING or self.pending.endswith(TERMINATE):
            self._pause_reading()

    def _messages(self, data: bytes, now: float) -> i64:
        """Work through whole messages; returns how many bytes are done with."""
        pos: i64 = 0
        n: i64 = len(data)
        while pos < n and self.waits == 0 and not self.ended:
            if self.stream_left > 0:
                take: i64 = self.stream_left if self.stream_left < n - pos else n - pos
                self.stream_left -= take
                if self.stream_to_server and self.server is not None:
                    self.server.outlet.write(data[pos : pos + take])
                pos += take
                if self.stream_left == 0 and self.stream_to_server:
                    self._streamed(now)
                continue
            if n - pos < HEADER:
                break
            kind: i64 = data[pos]
            length: i64 = i64(read_i32_be(data, pos + 1))
            if length < 4 or length > MAX_MESSAGE:
                raise ProtocolViolation("invalid message length")
            end: i64 = pos + 1 + length
            if end > n:
                if length <= MAX_HELD:
                    _check_header(kind, length)
                    break
                if not self._can_start(kind, length, data, pos):
                    break
                self.stream_left = end - n
                self.stream_to_server = True
            if kind == FE_QUERY and not self.skips_to_sync:
                self._query(data, pos, end, now)
            elif kind == FE_COPY_DATA or kind == FE_COPY_DONE or kind == FE_COPY_FAIL:
                self._copy(kind, data, pos, end, now)
            elif kind == FE_TERMINATE:
                self._terminate()
                return n
            elif self.skips_to_sync:
                self.stream_to_server = False
                _check_header(kind, length)
                if kind == FE_SYNC:
                    self.skips_to_sync = False
                    self.forward(READY_FAILED if self.in_transaction else READY_IDLE)
            else:
                if (kind == FE_PARSE or kind == FE_BIND) and end < n and self.unit.first is None:
                    whole = self._single(data, pos, now)
                    if whole > 0:
                        pos = whole
                        continue
                self._extended(kind, data, pos, end, length, now)
            pos = end if end < n else n
        return pos

    def _streamed(self, now: float) -> None:
        """Go on after a long message whose answer came before its end: a COPY that failed in the middle."""
        server = self.server
        if server is not None and server.replies.head is None and not self.awaits_sync:
            self.ready(now)

    def _can_start(self, kind: i64, length: i64, data: bytes, pos: i64) -> bool:
        """Tell whether a long message can be worked on before all of it is here."""
        available: i64 = len(data) - pos
        if kind == FE_COPY_DATA:
            return True
        if kind == FE_QUERY:
            return available > self.database.max_parse_bytes + HEADER
        if kind == FE_BIND:
            portal_end: i64 = data.find(b"\0", pos + HEADER)
            if portal_end >= 0 and data.find(b"\0", portal_end + 1) >= 0:
                return True
            if available > MAX_HELD:
                raise ProtocolViolation("invalid Bind message")
            return False
        if kind == FE_PARSE and length <= MAX_PARSE:
            return False
        if self.skips_to_sync and kind == FE_PARSE:
            return True
        if kind == FE_FUNCTION_CALL:
            return True
        _check_header(kind, length)
        raise ProtocolViolation("message is too long for its type")

    def _query(self, data: bytes, start: i64, end: i64, now: float) -> None:
        """Take a simple query."""
        n: i64 = len(data)
        if self.bucket is not None and self._lacks_permit(data, start, end, now):
            return
        if end <= n:
            if data[end - 1] != 0 or end - start < HEADER + 1:
                raise ProtocolViolation("invalid string in message")
            sql = data[start + HEADER : end - 1]
            if 0 in sql:
                raise ProtocolViolation("invalid string in message")
            intent = self.database.intents.lookup(sql)
        else:
            # Longer than what is parsed; the rest streams behind.
            sql = b""
            intent = self.database.intents.lookup_prefix(data[start + HEADER : n], end - start - HEADER - 1)
        message = Message(FE_QUERY, QUERY, data, start, end, None)
        message.intent = intent
        message.queued_at = now
        if self.database.logs_texts:
            # Of a longer one, its beginning.
            message.text = data[start + HEADER : end - 1 if end <= n else n]
        if end <= n:
            # Only these can stand at the end where a comment does; most texts are spared the call.
            last: i64 = data[end - 2]
            if last == 0x2F or last == 0x3B or last <= 0x20:
                message.traceparent = traceparent_of(sql)
        if not self._finish_unit(data, start, end, now):
            return
        unit = self.unit
        if intent.names and not self._rename_query(message, sql, intent):
            return
        if self.loosened == LOOSE_ENDED and message.error is None:
            message.error = self._loosen(intent)
        if intent.kind != READ or intent.refused or self.bucket is not None:
            if message.error is None:
                message.error = self._admit(intent, now)
        self.statements.name_unnamed(message, None)
        unit.uses(intent)
        unit.ended_by = FE_QUERY
        unit.add(message)
        self._dispatch(unit, now)

    def _finish_unit(self, data: bytes, start: i64, end: i64, now: float) -> bool:
        """Send an unfinished unit of extended messages, behind which another kind of message came.

        Returns False if that message has to wait, or is skipped because the unit failed.
        """
        if self.unit.first is None:
            return True
        self._dispatch(self.unit, now)
        if self.waits != 0:
            self._put_behind(data, start, end)
            return False
        self.stream_to_server = not self.skips_to_sync
        return not self.skips_to_sync

    def _put_behind(self, data: bytes, start: i64, end: i64) -> None:
        """Keep a message that came behind an unfinished unit which waits."""
        n: i64 = len(data)
        self.stream_left = 0
        self.pending = data[start : end if end < n else n]

    def _single(self, data: bytes, start: i64, now: float) -> i64:
        """Take a statement that is all there; returns where it ends, 0 if its messages are to be read one by one."""
        statements = self.statements
        if (
            self.server is not None
            or self.in_transaction
            or self.touched
            or self.bucket is not None
            or self.deferral != NONE
            or statements.unproven
            or statements.edits
        ):
            return 0
        database = self.database
        message = read_single(statements, database.intents, database.statements, self.profile, data, start)
        if message is None or message.intent is None:
            return 0
        message.queued_at = now
        unit = self.unit
        unit.uses(message.intent)
        unit.ended_by = FE_SYNC
        unit.add(message)
        self._dispatch(unit, now)
        return message.end

    def _extended(self, kind: i64, data: bytes, start: i64, end: i64, length: i64, now: float) -> None:
        """Take a message of the extended protocol."""
        if kind == FE_EXECUTE and self.bucket is not None and self._lacks_permit(data, start, end, now):
            return
        if self.unit.halts and kind != FE_SYNC and kind != FE_FLUSH:
            self._dispatch(self.unit, now)
            self._put_behind(data, start, end)
            return
        server = self.server
        if server is not None and server.replies.head is not None:
            if not self.awaits_sync and not server.replies.copying and self._hinges(kind, data, start, end):
                self.waits |= FOR_IDLE
                self._put_behind(data, start, end)
                return
        database = self.database
        if kind == FE_SYNC or kind == FE_FLUSH:
            if length != 4:
                raise ProtocolViolation("invalid message length")
        elif kind == FE_FUNCTION_CALL:
            self._refuse_function_call(data, start, end, now)
            return
        elif kind == FE_PASSWORD:
            raise ProtocolViolation("unexpected password message")
        elif kind != FE_BIND and kind != FE_PARSE and length > MAX_SMALL_MESSAGE:
            raise ProtocolViolation("invalid message length")
        # What a pinned session prepares may be about tables of its own; settings that changed are not known yet.
        profile = None if self.touched or self.pinned or self.unit.special else self.profile
        message = read_message(
            self.statements, database.intents, database.statements, profile, kind, data, start, end
        )
        unit = self.unit
        statement = message.statement
        if statement is not None and (kind == FE_BIND or kind == FE_PARSE):
            unit.uses(statement.intent)
        if statement is not None and statement.intent.names and not statement.by_sql:
            self._rename(message, statement)
        if kind == FE_EXECUTE:
            message.queued_at = now
            intent = message.intent
            if intent is not None and unit.refused is None:
                if not self.may_write:
                    message.error = self._loosen(intent)
                if message.error is None and (
                    intent.kind != READ or intent.refused or self.bucket is not None
                ):
                    message.error = self._admit(intent, now)
                    if intent.sweeps and message.error is None:
                        unit.sweeps = True
                        unit.halts = True
        elif kind == FE_SYNC or kind == FE_FLUSH:
            unit.ended_by = kind
        unit.add(message)
        if unit.ended_by != 0 or self.stream_left > 0 or unit.bytes > MAX_BYTES:
            self._dispatch(unit, now)

    def _hinges(self, kind: i64, data: bytes, start: i64, end: i64) -> bool:
        """Tell whether what a message means depends on whether a unit that is under way, or a part of it, is skipped.

        It does where it uses a name that such a unit changes, unless its own unit does so first.
        """
        body: i64 = start + HEADER
        n: i64 = len(data)
        limit: i64 = end if end < n else n
        if kind == FE_BIND:
            body = i64(data.find(b"\0", body, limit)) + 1
        elif (kind == FE_DESCRIBE or kind == FE_CLOSE) and data[body] == STATEMENT:
            body += 1
        elif kind != FE_PARSE:
            return False
        name_end: i64 = data.find(b"\0", body, limit)
        if body == 0 or name_end < 0:
            return False
        name = data[body:name_end]
        if not name:
            if kind == FE_PARSE or kind == FE_CLOSE:
                return False
        elif name not in self.statements.unsettled:
            return False
        message = self.unit.first
        while message is not None:
            changes = message.message_code == FE_PARSE or message.message_code == FE_CLOSE
            if changes and message.name == name and (name or message.subject is not None):
                return False
            message = message.following
        return True

    def _copy(self, kind: i64, data: bytes, start: i64, end: i64, now: float) -> None:
        """Pass COPY data on; without a server connection there is no COPY, and PostgreSQL ignores it then."""
        # It may belong to an Execute behind which no Sync or Flush came.
        if not self._finish_unit(data, start, end, now):
            return
        server = self.server
        if server is None:
            self.stream_to_server = False
            return
        if kind != FE_COPY_DATA and server.replies.head is not None:
            if self.copy_halts and server.replies.head.kind == QUERY:
                # In the extended protocol its Sync comes first.
                self.copy_halts = False
                self.waits |= FOR_IDLE
            server.replies.push(Reply(COPY_END, FORWARD))
        n: i64 = len(data)
        server.outlet.write(data if start == 0 and end >= n else data[start:end])

    def _admit(self, intent: Intent, now: float) -> ClientError | None:
        """Return why a statement may not run, None where it may."""
        key = self.key
        reason = refusal(intent, key.can_write, key.is_admin)
        if reason and not self._may_drop(intent):
            error: ClientError = InsufficientPermissions(reason)
            self._denied(intent, error)
            return error
        if intent.sets_pool:
            problem = pool_problem(intent.pool, key.is_admin)
            if problem:
                return InvalidParameter(problem)
        bucket = self.bucket
        if bucket is not None and not self._leaves(intent):
            wait = bucket.take(now, intent.statements if intent.statements > 1 else 1)
            if wait > 0.0:
                error = RateLimitExceeded(
                    extra=f"limit={key.rate_limit_per_minute} per minute",
                    hint=f"Try again in {wait:.1f} seconds.",
                )
                self._denied(intent, error)
                return error
        return None

    def _lacks_permit(self, data: bytes, start: i64, end: i64, now: float) -> bool:
        """Tell whether a message has to wait until the store of rate limits says whether it may run."""
        bucket = self.bucket
        if bucket is None or not bucket.lacks(now):
            return False
        self.waits |= FOR_PERMIT
        self._put_behind(data, start, end)
        bucket.wait(self.permit_known, now)
        return True

    def permit_known(self, now: float) -> None:
        """Go on with the message that waited for the store of rate limits."""
        self.waits &= ~FOR_PERMIT
        self.go_on(now)

    def _loosen(self, intent: Intent) -> ClientError | None:
        """Follow what a key that may not write executes, message by message; returns why it may not.

        What runs text that it is given may have switched default_transaction_read_only off. Behind the end of the
        transaction that would count, before anything could be done about it.
        """
        unit = self.unit
        if self.loosened == LOOSE_ENDED or unit.loosened == LOOSE_ENDED:
            error = InsufficientPermissions(_TOO_SOON)
            self._denied(intent, error)
            return error
        if intent.unclean and not intent.sweeps:
            unit.loosened = LOOSE
        if intent.ends and (unit.loosened == LOOSE or self.loosened == LOOSE):
            unit.loosened = LOOSE_ENDED
        return None

    def _leaves(self, intent: Intent) -> bool:
        """Tell whether a statement only ends the transaction: refused, it would hold the server connection longer."""
        return intent.ends and intent.statements == 1 and (self.in_transaction or self.deferral != NONE)

    def _may_drop(self, intent: Intent) -> bool:
        """Tell whether a DROP may mean the session's own temporary table; of another's PostgreSQL refuses it."""
        return (
            intent.kind == DDL
            and not intent.refused
            and "temporary table" in intent.unpins
            and "temporary table" in self.pins
        )

    def _rename_query(self, message: Message, sql: bytes, intent: Intent) -> bool:
        """Exchange the names of prepared statements in a simple query; False where it has to wait for its turn."""
        server = self.server
        if self.awaits_sync and server is not None:
            message.error = FeatureNotSupported(
                "PREPARE, EXECUTE and DEALLOCATE in a simple query are not supported before the Sync of what precedes"
            )
            return True
        if server is not None and server.replies.head is not None:
            if server.replies.copying:
                self.stray(server)
            self.waits |= FOR_IDLE
            self._put_behind(message.data, message.start, message.end)
            return False
        edit = self._rewrite(message, sql, intent)
        if edit is not None:
            message.edit = edit
            message.data = query(edit.sql)
            message.start = 0
            message.end = len(message.data)
            self.unit.halts = True
            self.edit = edit
        return True

    def _rename(self, message: Message, statement: Statement) -> None:
        """Exchange the names of prepared statements in what is bound, described or executed."""
        kind = message.message_code
        edit = message.edit
        if kind == FE_EXECUTE:
            if edit is not None and edit.steps and message.error is None:
                self.unit.halts = True
        elif (kind == FE_BIND or kind == FE_DESCRIBE) and message.error is None:
            edit = self._rewrite(message, statement.sql, statement.intent)
            message.edit = edit
            if kind == FE_BIND and edit is not None:
                portal = message.data[message.start + HEADER : message.name_start - 1]
                self.statements.edits[portal] = edit

    def _rewrite(self, message: Message, sql: bytes, intent: Intent) -> Edit | None:
        """Return `sql` with its names exchanged; None where it is refused, which is the message's error then."""
        database = self.database
        statements = self.statements
        profile = None if self.touched or self.pinned else self.profile
        try:
            edit = rewrite(sql, intent, statements.named, database.intents, database.statements, profile)
            statements.admit(edit)
        except ClientError as error:
            message.error = error
            return None
        for statement in edit.runs:
            reason = refusal(statement.intent, self.key.can_write, self.key.is_admin)
            if reason:
                message.error = InsufficientPermissions(reason)
                self._denied(statement.intent, message.error)
                return None
            self.unit.uses(statement.intent)
        return edit

    def _refuse_function_call(self, data: bytes, start: i64, end: i64, now: float) -> None:
        """Refuse a FunctionCall in its turn; like a Query it is answered with a ReadyForQuery."""
        if not self._finish_unit(data, start, end, now):
            return
        unit = self.unit
        message = Message(FE_QUERY, QUERY, data, start, end, None)
        message.error = FeatureNotSupported(
            "the function call sub-protocol is not supported", hint="Use SELECT."
        )
        unit.ended_by = FE_QUERY
        unit.add(message)
        self._dispatch(unit, now)

    def go_on(self, now: float) -> None:
        """Work on what was kept while the session waited."""
        if self.waits != 0 or self.ended:
            return
        unit = self.held_unit
        if unit is not None:
            self.held_unit = None
            self._dispatch(unit, now)
            if self.waits != 0:
                return
        if self.pending:
            data = self.pending
            self.pending = b""
            self._feed(data, now)
        if self.reading_paused and self.waits == 0 and not self.ended and not self.ending:
            self.reading_paused = False
            self.transport.resume_reading()


def _check_header(kind: i64, length: i64) -> None:
    """Refuse a message that is not looked into, or has not come whole, where its header tells that it is none."""
    if kind not in _KNOWN:
        raise ProtocolViolation(f"invalid frontend message type {kind}")
    if length > MAX_SMALL_MESSAGE and kind in _SMALL:
        raise ProtocolViolation("invalid message length")
    if length != 4 and kind in _EMPTY:
        raise ProtocolViolation("invalid message length")
