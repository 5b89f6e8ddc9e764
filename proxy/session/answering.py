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
from proxy.query.facts import POOL_PARAMETER
from proxy.query.intent import DDL, Intent
from proxy.query.naming import DEALLOCATE_ALL
from proxy.query.naming import PREPARE as PREPARE_STEP
from proxy.query.parameters import HIDDEN
from proxy.query.prepared import Statement
from proxy.query.route import pool_problem
from proxy.session.collect import NO_STATEMENT, ClientStatements
from proxy.session.refusal import (
    DENIED,
    NOT_SUPPORTED,
    READ_ONLY,
    RETRIED,
    refutes,
    sole_statement,
    where_part,
)
from proxy.session.renaming import Edit, Step, in_clients_name, tag_of
from proxy.session.sending import BEGIN, EDITED, UNNAMED, write_stray
from proxy.session.settings import LASTING, Look, probed
from proxy.session.state import (
    FOR_IDLE,
    FOR_LOOK,
    FOR_REPLIES,
    FOR_SOCKET,
    FOR_SWEEP,
    TIGHT,
    SessionState,
)
from proxy.session.unit import Message
from proxy.upstream.pool import Pool
from proxy.upstream.server import Server
from proxy.wire.codes import FE_BIND, FE_DESCRIBE
from proxy.wire.codes import IDLE as STATUS_IDLE
from proxy.wire.messages import (
    SYNC,
    TERMINATE,
    error_fields,
    error_response,
    first_columns,
)
from proxy.wire.replies import CLOSE, NOTHING, PARSE, QUERY, SINGLE, SKIP, Reply
from proxy.wire.replies import SYNC as SYNC_REPLY

log = logging.getLogger(__name__)

_PLAN_CHANGED: Final = "RevalidateCachedQuery"
"""The routine, never translated, that says "cached plan must not change result type"."""

_READ_ONLY: Final = b"default_transaction_read_only"


class Answering(SessionState):
    """A borrower's callbacks: answers, records, settings read back, ReadyForQuery."""

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

    def _took_effect(self, server: Server, intent: Intent) -> None:
        """Follow a statement that changes what a session keeps, and that succeeded."""
        if intent.sweeps:
            self.waits &= ~FOR_SWEEP
        if intent.unclean == "DISCARD ALL":
            label = server.label
            server.forget_session()
            server.label = label
            unnamed = self.statements.unnamed
            self.statements = ClientStatements()
            self.statements.unnamed = unnamed
            self.profile = self.startup_profile
            self._choose_pool()
            self._unpin(server, [pin for pin in self.pins if pin not in LASTING])
        elif "all" in intent.resets:
            server.renew_at = 0.0
            self._unpin(server, ["unseen settings"])
        if intent.resets:
            self.restores = True
        for pin in intent.pins:
            if pin in self.pins:
                self.pins[pin] = True

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

    def completed(self, reply: Reply) -> bytes:
        """Take over what a statement of a rewritten text does to the client's names."""
        if not isinstance(reply, Message) or reply.edit is None:
            return b""
        edit = reply.edit
        number = edit.completed
        edit.completed += 1
        for step in edit.steps:
            if step.number == number:
                self._step(step)
                return tag_of(step)
        return b""

    def _step(self, step: Step) -> None:
        statements = self.statements
        if step.verb == PREPARE_STEP:
            statements.put(step.name, step.statement)
            return
        if step.verb == DEALLOCATE_ALL:
            statements.named = {}
            statements.named_bytes = 0
        else:
            statements.drop(step.name)
        if self.server is not None:
            self.server.drop(step.statement)

    def _unstep(self, edit: Edit) -> None:
        """Note what a rewritten text that is over has not prepared."""
        server = self.server
        for step in edit.steps:
            if step.verb == PREPARE_STEP and step.number >= edit.completed and server is not None:
                server.drop(step.statement)

    def retold(self, reply: Reply, error: bytes) -> bytes:
        """Tell an error of a rewritten text, or of a statement under the server's name, in the client's own names."""
        if not isinstance(reply, Message):
            return error
        statement = reply.statement
        if statement is not None and (reply.name or reply.edit is not None):
            error = in_clients_name(error, EDITED if reply.edit is not None else statement.name, reply.name)
        if reply.edit is None:
            return error
        return b"" if reply.edit.failed else reply.edit.retell(error)

    def undone(self, reply: Reply, later: Reply | None) -> None:
        """Take back what a Parse, Close or Query that was skipped, or a Parse that failed, had changed."""
        server = self.server
        if isinstance(reply, Message):
            if reply.edit is not None:
                self._unstep(reply.edit)
            elif reply.kind == SINGLE:
                if reply.parsing:
                    self._forget_unnamed()
                    self._restore_unnamed(reply, later)
            elif reply.kind == PARSE:
                if reply.error is not None:
                    return
                if not reply.name:
                    self._forget_unnamed()
                    self._restore_unnamed(reply, later)
                    return
                self.statements.drop(reply.name)
                if reply.prepares and reply.statement is not None and server is not None:
                    server.drop(reply.statement)
            elif reply.kind == CLOSE and reply.name and reply.statement is not None:
                self.statements.drop(reply.name)
                self.statements.put(reply.name, reply.statement)
            else:
                self._restore_unnamed(reply, later)
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
            self.server.name_unnamed(None)

    def _restore_unnamed(self, message: Message, later: Reply | None) -> None:
        """Make the unnamed statement what it was before `message`; or none, where a Parse has failed itself.

        What changes it behind `message`, be it sent or not, is told so: it may be undone as well.
        """
        before = message.subject
        if before is None:
            return
        if message.sqlstate:
            before = NO_STATEMENT
        while later is not None:
            if later.subject is not None and isinstance(later, Message):
                later.subject = before
                return
            later = later.next
        unit = self.held_unit if self.held_unit is not None else self.unit
        unsent = unit.first
        while unsent is not None:
            if unsent.subject is not None:
                unsent.subject = before
                return
            unsent = unsent.following
        self.statements.unnamed = before if isinstance(before, Statement) else None

    def shows(self, name: bytes, value: bytes) -> bytes | None:
        """Return what the client is to see of this ParameterStatus: only what changes for itself."""
        server = self.server
        parameter = name.decode("utf-8", "replace").lower()
        if name in HIDDEN:
            # Where the client itself chose it, it is told.
            if name != _READ_ONLY or parameter not in self.touched:
                return None
        elif server is not None:
            default = server.defaults.get(name)
            chosen = self.profile.get(parameter)
            if value != (default if chosen is None else chosen.encode()):
                # Whatever changed it: a function may have.
                self.touched.setdefault(parameter, False)
                self.looks = True
            begun = self.startup_profile.get(parameter)
            if begun is not None and value == default and self.touched.get(parameter, False):
                value = self.start_reports.get(name, begun.encode())
                if name == b"application_name":
                    # Not tried on a server at the login, so that sessions share what was.
                    value = begun.encode()
        if self.reported.get(name) == value:
            return None
        self.reported[name] = value
        return value

    def row(self, reply: Reply, data: bytes, start: i64, end: i64) -> None:
        """Keep what the server answered to a look."""
        look = self.look
        if look is not None and reply.subject is look:
            look.row = first_columns(data, start, end)

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

    def _look(self, server: Server) -> bool:
        """Ask the server about settings that the client has touched, and about pins; True if it was asked."""
        self.looks = False
        look = Look(server, self.touched, self.pins)
        self.touched = {}
        if not look.needed:
            return False
        self.look = look
        # As any simple query does (manual, "Extended Query").
        server.name_unnamed(None)
        question = Reply(QUERY, SKIP, look)
        question.sent_at = server.last_byte_at
        server.replies.push(question)
        server.outlet.write(look.query())
        self.waits |= FOR_LOOK
        return True

    def _apply_look(self, server: Server) -> None:
        """Make what the server says the session's own."""
        self.waits &= ~FOR_LOOK
        look = self.look
        self.look = None
        assert look is not None
        if not look.answered:
            # A statement_timeout of next to nothing, say: the session stays where its settings are.
            if look.touched:
                self.pin("unseen settings")
            return
        profiles = self.database.profiles
        if look.touched:
            wanted, actual = look.apply(server, self.profile, self.startup_profile, profiles.empty)
            self.profile = profiles.of(wanted)
            server.profile = profiles.of(actual)
            self._choose_pool()
        self._unpin(server, look.gone())

    def _choose_pool(self) -> None:
        """Go by sluice.pool, which is a setting like any other; a pool that the key cannot have is none."""
        asked = self.profile.get(POOL_PARAMETER) or ""
        if asked != self.asked_pool:
            self.asked_pool = "" if pool_problem(asked, self.key.is_admin) else asked
            self.routed = None

    def pin(self, reason: str) -> None:
        """Keep the server connection from now on."""
        if reason in self.pins:
            return
        pool = self.pool
        self.pins[reason] = False
        if pool is None or self.database.session_mode:
            # There it keeps the connection anyhow.
            return
        pool.stats.pins.add(reason)
        if reason not in self.pins_told:
            # Once: a session may take and release a lock a thousand times.
            self.pins_told += (reason,)
            log.info(
                "session %d keeps a connection of pool %s on %s: %s", self.pid, pool.name, pool.host, reason
            )
        if not self.pinned:
            self.pinned = reason
            pool.pinned += 1

    def _unpin(self, server: Server, reasons: list[str]) -> None:
        """Forget reasons for keeping the connection; without any it is given back, to be reset first."""
        for reason in reasons:
            self.pins.pop(reason, None)
        if not self.pinned:
            return
        if self.pins:
            self.pinned = next(iter(self.pins))
            return
        log.debug("session %d no longer keeps its connection", self.pid)
        server.unclean = self.pinned
        self._release_pin()
