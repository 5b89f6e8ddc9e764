"""What comes back to a session from its server connection, up to the connection's return to its pool."""

from __future__ import annotations

import logging
import time
from typing import Final

from librt.strings import read_i32_be
from mypy_extensions import i64

from proxy.errors import UpstreamUnavailable
from proxy.query.intent import DDL, Intent
from proxy.query.prepared import Statement
from proxy.session.following import Following
from proxy.session.refusal import (
    DENIED,
    NOT_SUPPORTED,
    READ_ONLY,
    RETRIED,
    refutes,
    sole_statement,
    where_part,
)
from proxy.session.sending import BEGIN, UNNAMED, write_stray
from proxy.session.settings import Look, probed
from proxy.session.state import FOR_IDLE, FOR_REPLIES, FOR_SOCKET, FOR_SWEEP, TIGHT
from proxy.session.unit import Message
from proxy.upstream.pool import Pool
from proxy.upstream.server import Server
from proxy.wire.codes import FE_BIND, FE_DESCRIBE
from proxy.wire.codes import IDLE as STATUS_IDLE
from proxy.wire.messages import SYNC, TERMINATE, error_fields, error_response
from proxy.wire.reply import NOTHING, PARSE, SKIP, Reply
from proxy.wire.reply import SYNC as SYNC_REPLY

log = logging.getLogger(__name__)

_PLAN_CHANGED: Final = "RevalidateCachedQuery"
"""The routine, never translated, that says "cached plan must not change result type"."""


class Answering(Following):
    """A borrower's callbacks: answers, records, what is asked for once more, ReadyForQuery."""

    def executed(self, reply: Reply) -> None:
        """Record a statement that was answered."""
        if not isinstance(reply, Message) or self.turning:
            return
        self.kept = None
        intent = reply.intent
        server = self.server
        pool = self.pool
        if reply.edit is not None:
            self.waits &= ~FOR_SWEEP
            self._unstep(reply.edit)
        if self.repeated:
            return
        if server is None or pool is None or intent is None:
            return
        if reply.sqlstate:
            self.waits &= ~FOR_SWEEP
            if self.prelude_under_way:
                # What failed may have been the identity's own transaction: it is set again before the next unit.
                server.renew_at = 0.0
            if (
                reply.sqlstate in RETRIED
                and reply.sqlstate != NOT_SUPPORTED
                and reply.sqlstate != DENIED
                and refutes(self.route, intent, reply, self.profile)
            ):
                # Somebody's next try is on the primary.
                intent.refuted(reply.sqlstate.decode("ascii"))
                self.routed = None
            if intent.pin:
                # What a look tells of pins is found out at the transaction's end.
                self._unpin(
                    server, [pin for pin in intent.pins if not probed(pin) and not self.pins.get(pin, True)]
                )
        else:
            if intent.kind == DDL:
                self.defined = True
                self.database.statements.renew()
            if intent.special:
                self._took_effect(server, intent)
            if reply.statement is not None:
                reply.statement.proven = True
        self.uses += 1
        database = self.database
        queued_at = reply.queued_at
        queued_us: i64 = i64((reply.sent_at - queued_at) * 1_000_000.0)
        first_us: i64 = i64((reply.first_at - queued_at) * 1_000_000.0)
        duration_us: i64 = i64((server.last_byte_at - queued_at) * 1_000_000.0)
        pool.stats.statement(
            intent.kind, queued_us, duration_us - queued_us, reply.bytes_in, reply.bytes_out, reply.sqlstate
        )
        if duration_us >= database.slow_us:
            self._was_slow(pool, intent, reply, server.last_byte_at, duration_us, queued_us)
        statement = reply.statement
        text = b""
        if database.logs_texts:
            text = reply.text if statement is None else statement.sql
        database.access.statement(
            self.log_part,
            pool.log_part,
            where_part(self.route, intent, reply.in_transaction),
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
            reply.traceparent if statement is None else statement.traceparent,
            text,
        )

    def _was_slow(
        self, pool: Pool, intent: Intent, reply: Message, now: float, duration_us: i64, queued_us: i64
    ) -> None:
        """Tell the program's log of a statement that took long."""
        database = self.database
        shown = "" if database.access.statements == "none" else intent.normalized
        database.slow.tell(
            now,
            duration_us,
            queued_us,
            self.key.id,
            f"pool {pool.name} on {pool.host}",
            reply.rows,
            reply.sqlstate.decode("ascii", "replace"),
            shown,
            intent.fingerprint,
        )

    def record_unanswered(self, server: Server, sqlstate: bytes, code: bytes) -> None:
        """Record what will not be answered: it was sent, and may have run; of a read, rows may have been told."""
        for reply in server.replies.unanswered():
            reply.sqlstate = sqlstate
            reply.code = code
            self.executed(reply)
            # Once is enough, whatever ends the session behind this.
            reply.sent_at = 0.0

    def record_begin(self, pool: Pool, begin: Statement) -> None:
        """Record a BEGIN that was answered before it was sent."""
        self.uses += 1
        database = self.database
        at = self.begun_at + database.wall_offset
        intent = begin.intent
        pool.stats.statement(intent.kind, 0, 0, 0, 0, b"")
        database.access.statement(
            self.log_part,
            pool.log_part,
            where_part(self.route, intent, False),
            intent,
            at,
            0,
            0,
            0,
            0,
            0,
            0,
            False,
            self.pinned != "",
            b"",
            b"",
            begin.traceparent,
        )

    def repeats(self, reply: Reply, error: bytes) -> bool:
        """Have a statement parsed anew whose table has changed since somebody else prepared it.

        Its client prepared it after that, and with a connection of its own would not see the error. Who prepared it
        before does, as from PostgreSQL.
        """
        server = self.server
        if not isinstance(reply, Message) or reply.statement is None or server is None or self.in_transaction:
            return False
        if error_fields(error, 0, len(error)).get("R", "") != _PLAN_CHANGED:
            return False
        if not self._may_repeat(server):
            return False
        database = self.database
        database.statements.renew()
        statements = self.statements
        for name in list(statements.unproven):
            known = statements.named.get(name)
            if known is not None and known.profile is not None:
                fresh = database.statements.get(known.sql, known.types, known.intent, known.profile)
                statements.drop(name)
                statements.put(name, fresh)
        found = False
        for message, data in self.repeatable:
            found = found or message is reply
            if found:
                self.repeated += data
        return found

    def turns(self, reply: Reply, state: bytes, error: bytes) -> bool:
        """Have a read asked for once more of which its client has not heard yet.

        On the primary, where a replica refused it; anywhere, with its Parse, where that had been left out.
        """
        kept = self.kept
        server = self.server
        pool = self.pool
        if kept is None or server is None or pool is None or not isinstance(reply, Message):
            return False
        if self.ended or self.ending or self.repeated or reply.repeatable:
            return False
        if reply.spared and not reply.bound:
            # Whatever it is: to a Parse of now the server might say something else.
            server.name_unnamed(None)
            self.turning = sole_statement(kept, server.replies.tail) is not None
            return self.turning
        if state not in RETRIED or not self.database.retries_refused_reads:
            return False
        if reply.kind == PARSE or reply.parsing:
            # Which names it has taken back is not to be found out again.
            return False
        if state == NOT_SUPPORTED and error_fields(error, 0, len(error)).get("R", "") == _PLAN_CHANGED:
            return False
        intent = sole_statement(kept, server.replies.tail)
        if intent is None or not refutes(self.route, intent, reply, self.profile):
            return False
        primary = self.database.cluster.primary
        elsewhere = primary is not None and primary.name != pool.host
        if not self.may_write and (state == READ_ONLY or state == DENIED or not elsewhere):
            # It keeps its login, which is refused there too.
            return False
        intent.refuted(state.decode("ascii"))
        self.routed = None
        self.turning = True
        pool.stats.retries.add(state.decode("ascii"))
        return True

    def turn(self, now: float) -> None:
        """Send the read that was refused to the primary."""
        raise AssertionError

    def _may_repeat(self, server: Server) -> bool:
        """Tell whether nothing came behind the unit that has failed at its start, which PostgreSQL would skip.

        One that ends in Flush then gets a Sync of the proxy's own, sent by relieved(): nothing has run that it could
        commit.
        """
        last: Message | None = None
        for message, _ in self.repeatable:
            if message.kind != NOTHING:
                last = message
        if last is not server.replies.tail:
            return False
        if self.awaits_sync:
            if self.unit.first is not None or self.held_unit is not None:
                return False
            self.waits |= FOR_IDLE
            server.crowded = True
        return True

    def injected_failed(self, reply: Reply, data: bytes, start: i64, end: i64) -> None:
        """End the session: its identity or parameters could not be set, so nothing may run for it there."""
        server = self.server
        subject = reply.subject
        begins = subject is BEGIN or (isinstance(subject, Statement) and subject.intent.begins != "")
        if not begins and (subject is UNNAMED or isinstance(subject, Statement)):
            # A client's statement that no longer parses: its Bind is skipped, and this is the answer.
            if isinstance(reply.subject, Statement) and server is not None:
                server.drop(reply.subject)
            if self.edit is not None:
                self.edit.failed = True
            if i64(read_i32_be(data, start + 1)) == end - start - 1:
                self.forward(data[start:end])
            else:
                self.forward(error_response(UpstreamUnavailable(error_fields(data, start, end).get("M", ""))))
            return
        reason = error_fields(data, start, end).get("M", "")
        if isinstance(reply.subject, Look):
            log.warning("session %d: the server did not tell its settings: %s", self.pid, reason)
            return
        # A BEGIN that was answered already cannot be taken back; what stands behind it was skipped.
        what = "BEGIN" if begins else "the session's identity or parameters"
        log.error("session %d: the server refused %s: %s", self.pid, what, reason)
        self.fatal(UpstreamUnavailable(f"the server refused {what}"))
        if server is not None:
            server.fail(UpstreamUnavailable("prelude failed"))

    def copy_in(self) -> None:
        """Learn that the server expects CopyData: the client's pass straight on, whatever has to wait behind them."""
        server = self.server
        if server is None or not server.replies.copying:
            return
        if self.ending:
            server.outlet.write(TERMINATE)
        elif self.held_unit is not None or server.replies.fakes_behind():
            # Both would wait for each other.
            self.stray(server)
        elif self.waits & FOR_IDLE != 0:
            self.waits &= ~FOR_IDLE
            self.copy_halts = True
            # Go on when this read is done with: see relieved().
            server.crowded = True

    def stray(self, server: Server) -> None:
        """Tell the server that the client sent what has no place within a COPY."""
        write_stray(server, self.out)
        if not self.awaits_sync:
            self.out.put(SYNC)
            server.replies.push(Reply(SYNC_REPLY, SKIP))
        self.out.write_to(server)

    def ready(self, now: float) -> None:
        """Go on after ReadyForQuery, with nothing owed: give the connection back unless it is still needed."""
        server = self.server
        if server is None:
            return
        self.waits &= ~FOR_REPLIES
        self.copy_halts = False
        if self.turning:
            self.turn(now)
            return
        if self.filling is not None:
            self.filled(server, now)
        if self.awaits_sync:
            if not self.query_is_last:
                self.go_on(now)
                return
            self.awaits_sync = False
        if self.stream_left > 0 and self.stream_to_server:
            self.go_on(now)
            return
        self.kept = None
        self.prelude_under_way = False
        if self.statements.unsettled:
            self.statements.unsettled.clear()
        if self.held_unit is None:
            self.edit = None
        if self.repeatable:
            self._repeat()
        if server.replies.status == STATUS_IDLE:
            self.in_transaction = False
            self.restores = False
            self.loosened = TIGHT
            if self.look is not None:
                self._apply_look(server)
            elif self.looks and self._look(server):
                return
            if self.touched:
                self.touched = {}
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
                if self.changed:
                    self.changes_end(now)
            pool = self.pool
            if pool is not None:
                stats = pool.stats
                stats.transactions += 1
                stats.transaction_us += i64((now - server.begun_at) * 1_000_000.0)
            if not self.pinned and not self.database.session_mode:
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

    def _repeat(self) -> None:
        """Put what is to be sent once more before what the client sent since; else trust what was used."""
        for message, _ in self.repeatable:
            if message.message_code == FE_BIND or message.message_code == FE_DESCRIBE:
                self.statements.unproven.discard(message.name)
        self.repeatable = []
        if self.repeated:
            self.pending = self.repeated + self.pending
            self.repeated = b""

    def relieved(self) -> None:
        """Go on: the server owes few enough answers again."""
        server = self.server
        if self.repeated and self.awaits_sync and server is not None:
            self.awaits_sync = False
            server.replies.push(Reply(SYNC_REPLY, SKIP))
            server.outlet.write(SYNC)
            return
        if self.waits & FOR_SWEEP != 0 and server is not None and not server.replies.skipping:
            server.crowded = True
            return
        if server is not None and self.awaits_sync and self.waits & FOR_IDLE != 0:
            if not server.replies.skipping:
                server.crowded = True
                return
            self.waits &= ~FOR_IDLE
        self.waits &= ~FOR_SWEEP
        self.waits &= ~FOR_REPLIES
        self.go_on(time.monotonic())

    def server_full(self) -> None:
        """Stop reading from the client: the server does not take as much."""
        self.waits |= FOR_SOCKET

    def server_drained(self) -> None:
        """Go on reading from the client."""
        self.waits &= ~FOR_SOCKET
        self.go_on(time.monotonic())
