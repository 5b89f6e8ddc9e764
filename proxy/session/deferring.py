"""Units that need no server: a BEGIN held back, what stands behind it, statements that servers are known to take."""

from __future__ import annotations

from proxy.query.intent import Intent
from proxy.query.prepared import NO_TYPES, Statement
from proxy.query.route import REPLICA, Route, choose
from proxy.session.deferral import (
    DEFERRED,
    FAILED,
    NONE,
    AbortedTransaction,
    answer,
    begin_tag,
    begins_plainly,
    deciding,
    end_tag,
    sole_intent,
)
from proxy.session.preparing import Preparing
from proxy.session.sending import Writer, write_begin
from proxy.session.unit import Unit
from proxy.upstream.server import Server
from proxy.wire.codes import (
    FAILED_TRANSACTION,
    FE_PARSE,
    FE_QUERY,
    FE_SYNC,
    HEADER,
    IN_TRANSACTION,
)
from proxy.wire.codes import IDLE as STATUS_IDLE
from proxy.wire.messages import (
    PARSE_COMPLETE,
    READY_FAILED,
    READY_IDLE,
    READY_IN_TRANSACTION,
)
from proxy.wire.reply import SYNC as SYNC_REPLY


class Deferring(Preparing):
    """Answers what needs no server connection, and tells where a unit is to go that needs one."""

    def _only_prepares(self, unit: Unit) -> bool:
        """Answer a unit that only prepares statements which servers are known to take; False where it is another.

        It needs no server connection then. A client that prepares in a blocking call (pgbench does) would else
        wait for a connection that its own other sessions hold.
        """
        message = unit.first
        while message is not None and message.message_code == FE_PARSE:
            statement = message.statement
            if statement is None or not statement.proven or not message.name:
                return False
            message = message.following
        if message is None or message.kind != SYNC_REPLY:
            return False
        end = READY_IN_TRANSACTION if self.in_transaction else READY_IDLE
        self.forward(PARSE_COMPLETE * (unit.length - 1) + end)
        unit.clear()
        return True

    def _needs_no_server(self, unit: Unit, now: float) -> bool:
        """Hold back a BEGIN; answer what is in a transaction that no server knows of, where none is needed."""
        intent = sole_intent(unit)
        if self.deferral == FAILED:
            return self._aborted(unit, intent)
        if intent is None:
            return False
        if self.deferral == DEFERRED:
            tag = end_tag(intent, False)
            if tag:
                self._end_deferral(unit, tag)
            return tag != b""
        server = self.server
        if self.in_transaction or self.awaits_sync or not self.database.lazy_begin:
            return False
        if server is not None and server.replies.head is not None:
            return False
        if not begins_plainly(intent, self._route_of(unit).host_role == REPLICA):
            return False
        if "listen" in self.pins:
            # In a transaction no notification comes: the server has to know of it.
            return False
        self.begin = self.database.statements.get(
            _text_of(unit), NO_TYPES, intent, self.database.profiles.empty
        )
        self.begun_at = now
        self.deferral = DEFERRED
        self.in_transaction = True
        self.forward(answer(unit, begin_tag(intent), IN_TRANSACTION))
        unit.clear()
        return True

    def _aborted(self, unit: Unit, intent: Intent | None) -> bool:
        """Answer a unit in a transaction that has failed before any server knew of it."""
        if intent is not None:
            tag = end_tag(intent, True)
            if tag:
                self._end_deferral(unit, tag)
                return True
            if intent.statements == 0:
                self.forward(answer(unit, b"", FAILED_TRANSACTION))
                unit.clear()
                return True
        if unit.length == 1 and unit.ended_by != FE_QUERY and unit.ended_by != 0:
            if unit.ended_by == FE_SYNC:
                self.forward(READY_FAILED)
            unit.clear()
            return True
        self._answer_unsent(unit, AbortedTransaction())
        return True

    def _end_deferral(self, unit: Unit, tag: bytes) -> None:
        self.deferral = NONE
        self.begin = None
        self.in_transaction = False
        self.forward(answer(unit, tag, STATUS_IDLE))
        self.statements.end_transaction()
        unit.clear()

    def _route_of(self, unit: Unit) -> Route:
        """Return where `unit` is to go."""
        intent = unit.intent
        unfinished = unit.ended_by != FE_QUERY and unit.ended_by != FE_SYNC
        begin = self.begin
        if begin is not None:
            # The transaction decides for all that is in it.
            intent = deciding(begin.intent, intent)
            unfinished = False
        if intent is not None and intent is self.routed and not unfinished:
            return self.routed_to
        key = self.key
        if intent is None:
            intent = self.database.intents.lookup(b"")
        route = choose(intent, key.can_write, key.is_admin, "", self.asked_pool, key.default_pool)
        if route.host_role == "primary":
            return route
        database = self.database
        if (unfinished and not unit.begins) or not database.routing or database.session_mode:
            # More may follow on the same connection, perhaps a write; or reads are not told apart.
            return choose(
                database.unfinished, key.can_write, key.is_admin, "", self.asked_pool, key.default_pool
            )
        self.routed = intent
        self.routed_to = route
        return route

    def _begin(self, server: Server, begin: Statement, out: Writer) -> None:
        """Send the BEGIN that was held back, in front of its transaction's first unit."""
        write_begin(server, begin, out)
        self.begin = None
        self.deferral = NONE
        pool = self.pool
        if pool is not None:
            self.record_begin(pool, begin)


def _text_of(unit: Unit) -> bytes:
    """Return the text of the sole statement of `unit`."""
    first = unit.first
    assert first is not None
    if first.statement is not None:
        return first.statement.sql
    return first.data[first.start + HEADER : first.end - 1]
