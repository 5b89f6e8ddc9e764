"""What comes back to a session from its server connection, up to the connection's return to its pool."""

from __future__ import annotations

import logging
import time
from typing import Final

from librt.strings import read_i32_be
from mypy_extensions import i64

from proxy.errors import (
    UpstreamUnavailable,
)
from proxy.observe.record import route_part
from proxy.query.intent import DDL, Intent
from proxy.query.prepared import Statement
from proxy.session.collect import ClientStatements
from proxy.session.sending import UNNAMED
from proxy.session.settings import default_for, read_back_query, readable
from proxy.session.state import (
    FOR_IDLE,
    FOR_READ_BACK,
    FOR_REPLIES,
    FOR_SOCKET,
    FOR_SWEEP,
    SessionState,
)
from proxy.session.unit import Message
from proxy.upstream.server import Server
from proxy.wire.codes import IDLE as STATUS_IDLE
from proxy.wire.messages import (
    error_fields,
    error_response,
    first_columns,
)
from proxy.wire.replies import CLOSE, PARSE, QUERY, SKIP, Reply

log = logging.getLogger(__name__)

_PLAN_CHANGED: Final = b"0A000"

# What a server reports of itself and of the pool's login, which changes with routing and is none of a client's.
_HIDDEN: Final = frozenset(
    [b"in_hot_standby", b"default_transaction_read_only", b"session_authorization", b"is_superuser"]
)


class Answering(SessionState):
    """A borrower's callbacks: answers, records, settings read back, ReadyForQuery."""

    def executed(self, reply: Reply) -> None:
        """Record a statement that was answered."""
        if not isinstance(reply, Message):
            return
        intent = reply.intent
        server = self.server
        pool = self.pool
        if server is None or pool is None or intent is None:
            return
        if reply.sqlstate:
            self.waits &= ~FOR_SWEEP
            if self.prelude_under_way:
                # What failed may have been the identity's own transaction: it is set again before the next unit.
                server.renew_at = 0.0
            if reply.sqlstate == _PLAN_CHANGED and reply.statement is not None:
                # "cached plan must not change result type": its table has changed since it was parsed.
                self.database.statements.renew()
        else:
            if intent.kind == DDL:
                self.defined = True
                self.database.statements.renew()
            if intent.unclean:
                self._swept(server, intent)
            if reply.statement is not None:
                reply.statement.proven = True
        database = self.database
        route = self.route
        if not route.log_part:
            route.log_part = route_part(route.target, route.reason)
        queued_at = reply.queued_at
        queued_us: i64 = i64((reply.sent_at - queued_at) * 1_000_000.0)
        first_us: i64 = i64((reply.first_at - queued_at) * 1_000_000.0)
        duration_us: i64 = i64((server.last_byte_at - queued_at) * 1_000_000.0)
        pool.stats.statement(
            intent.kind, queued_us, duration_us - queued_us, reply.bytes_in, reply.bytes_out, reply.sqlstate
        )
        database.access.statement(
            self.log_part,
            pool.log_part,
            route.log_part,
            intent,
            queued_at + database.wall_offset,
            queued_us,
            first_us,
            duration_us,
            reply.rows,
            reply.bytes_in,
            reply.bytes_out,
            reply.in_transaction,
            self.pinned != "",
            reply.sqlstate,
            reply.code,
            b"",
        )

    def _swept(self, server: Server, intent: Intent) -> None:
        """Follow a RESET ALL or DISCARD ALL that succeeded."""
        self.waits &= ~FOR_SWEEP
        if intent.unclean == "DISCARD ALL":
            label = server.label
            server.forget_session()
            server.label = label
            self.statements = ClientStatements()
            self.profile = self.startup_profile
        elif intent.unclean == "RESET ALL":
            server.renew_at = 0.0
            server.profile = None
            self.profile = self.startup_profile

    def undone(self, reply: Reply) -> None:
        """Take back what a Parse or Close that failed, or was never sent, had changed."""
        server = self.server
        if isinstance(reply, Message):
            if reply.kind == PARSE:
                if reply.error is not None:
                    return
                if not reply.name:
                    self._forget_unnamed()
                    return
                self.statements.drop(reply.name)
                if reply.prepares and reply.statement is not None and server is not None:
                    server.drop(reply.statement)
            elif reply.kind == CLOSE and reply.name and reply.statement is not None:
                self.statements.drop(reply.name)
                self.statements.put(reply.name, reply.statement)
            return
        subject = reply.subject
        if subject is UNNAMED:
            self._forget_unnamed()
        elif isinstance(subject, Statement) and server is not None:
            if reply.kind == PARSE:
                server.drop(subject)
            else:
                # The server has it still: it is closed before it is parsed again.
                server.stale.add(subject.number)

    def _forget_unnamed(self) -> None:
        """Note that the server's unnamed statement is not what it was to become: it is parsed again where needed."""
        if self.server is not None:
            self.server.unnamed = None

    def shows(self, name: bytes, value: bytes) -> bool:
        """Tell whether the client is to see this ParameterStatus: only what changes for itself."""
        if name in _HIDDEN or self.reported.get(name) == value:
            return False
        self.reported[name] = value
        return True

    def row(self, reply: Reply, data: bytes, start: i64, end: i64) -> None:
        """Keep the values that were read back."""
        if reply.subject is self:
            self.read_back_row = first_columns(data, start, end)

    def injected_failed(self, reply: Reply, data: bytes, start: i64, end: i64) -> None:
        """End the session: its identity or parameters could not be set, so nothing may run for it there."""
        if isinstance(reply.subject, Statement) or reply.subject is UNNAMED:
            # A client's statement that no longer parses: its Bind is skipped, and this is the answer.
            if i64(read_i32_be(data, start + 1)) == end - start - 1:
                self.forward(data[start:end])
            else:
                self.forward(error_response(UpstreamUnavailable(error_fields(data, start, end).get("M", ""))))
            return
        reason = error_fields(data, start, end).get("M", "")
        log.error("session %d: the server refused its identity or parameters: %s", self.pid, reason)
        server = self.server
        self.fatal(UpstreamUnavailable("the server refused the session's identity or parameters"))
        if server is not None:
            server.fail(UpstreamUnavailable("prelude failed"))

    def copy_in(self) -> None:
        """Learn that the server expects CopyData: the client's pass straight on."""

    def ready(self, now: float) -> None:
        """Go on after ReadyForQuery, with nothing owed: give the connection back unless it is still needed."""
        server = self.server
        if server is None:
            return
        self.waits &= ~FOR_REPLIES
        if self.awaits_sync:
            if not self.query_is_last:
                self.go_on(now)
                return
            self.awaits_sync = False
        if self.stream_left > 0 and self.stream_to_server:
            self.go_on(now)
            return
        self.prelude_under_way = False
        if server.replies.status == STATUS_IDLE:
            self.in_transaction = False
            if self.waits & FOR_READ_BACK != 0:
                self._apply_read_back(server)
            elif self.touched and self._read_back(server):
                return
            statements = self.statements
            if statements.portals or statements.unnamed_portal is not None:
                statements.end_transaction()
            if self.defined:
                # Others saw the old tables until now.
                self.defined = False
                self.database.statements.renew()
            if self.wrote:
                self.wrote = False
                self.last_write = now
            if not self.pinned and not self.database.session_mode:
                pool = self.pool
                self.server = None
                if pool is not None:
                    pool.give_back(server, now)
        else:
            self.in_transaction = True
        if self.ending:
            if self.last_words is not None:
                self.fatal(self.last_words)
            self._end()
        elif self.waits != 0 or self.pending:
            self.waits &= ~FOR_IDLE
            self.go_on(now)

    def relieved(self) -> None:
        """Go on: the server owes few enough answers again."""
        if self.waits & FOR_SWEEP != 0 and self.server is not None:
            self.server.crowded = True
            return
        self.waits &= ~FOR_REPLIES
        self.go_on(time.monotonic())

    def server_full(self) -> None:
        """Stop reading from the client: the server does not take as much."""
        self.waits |= FOR_SOCKET

    def server_drained(self) -> None:
        """Go on reading from the client."""
        self.waits &= ~FOR_SOCKET
        self.go_on(time.monotonic())

    def _read_back(self, server: Server) -> bool:
        """Ask the server what the settings are now that the client has touched; True if it was asked."""
        names = readable(self.touched)
        if not names:
            self.touched = {}
            return False
        server.replies.push(Reply(QUERY, SKIP, self))
        server.outlet.write(read_back_query(names))
        self.waits |= FOR_READ_BACK
        return True

    def _apply_read_back(self, server: Server) -> None:
        """Make the values that the server reports the session's own."""
        self.waits &= ~FOR_READ_BACK
        names = readable(self.touched)
        self.touched = {}
        values = dict(self.profile.values)
        for name, value in zip(names, self.read_back_row, strict=False):
            text = value.decode("utf-8", "replace") if value is not None else ""
            if name not in values and text == default_for(server, name):
                continue
            values[name] = text
        self.read_back_row = []
        self.profile = self.database.profiles.of(values)
        server.profile = self.profile
