"""Where a unit goes: its target, a server connection, what must precede it there, and one write."""

from __future__ import annotations

import time
from typing import Final

from proxy.errors import (
    ClientError,
    HostUnavailable,
    NoPrimary,
    PoolExhausted,
)
from proxy.query.facts import POOL_PARAMETER
from proxy.query.intent import SESSION, TRANSACTION, Intent
from proxy.query.prepared import Statement
from proxy.query.route import REPLICA, Route
from proxy.session.caching import Caching
from proxy.session.collect import DuplicateStatement
from proxy.session.deferral import (
    NONE,
)
from proxy.session.folding import lacking, parse_apart
from proxy.session.renaming import UndefinedStatement
from proxy.session.retry import anew, failed, may_try_again
from proxy.session.sending import Writer, undo, write_unit
from proxy.session.settings import probed
from proxy.session.state import (
    FOR_CLIENT,
    FOR_IDLE,
    FOR_REPLIES,
    FOR_SERVER,
    FOR_SOCKET,
    FOR_SWEEP,
    LOOSE,
    TIGHT,
)
from proxy.session.unit import Unit
from proxy.upstream.pool import Pool
from proxy.upstream.server import Server
from proxy.wire.codes import (
    FE_BIND,
    FE_DESCRIBE,
    FE_EXECUTE,
    FE_FLUSH,
    FE_QUERY,
    FE_SYNC,
)
from proxy.wire.messages import (
    FLUSH,
    READY_IDLE,
    READY_IN_TRANSACTION,
    SYNC,
)
from proxy.wire.reply import FORWARD, SKIP, Reply
from proxy.wire.reply import SYNC as SYNC_REPLY

MAX_REPLIES: Final = 10_000
"""Answers that one session may be owed before its input waits; an entry takes some 200 bytes."""

MAX_KEPT: Final = 65_536
"""Bytes of a unit that is kept to be sent once more: one read of a client's socket."""

_NOW: Final = 1e-9
"""A time to retire at that has always come."""


class Lending(Caching):
    """Borrows server connections for units, and answers units that cannot have one."""

    def _dispatch(self, unit: Unit, now: float) -> None:
        """Send `unit` to the server connection that it belongs to, or let it wait for one."""
        if unit is self.unit:
            self.unit = self.spare
            self.spare = unit
        if (unit.begins or self.deferral != NONE) and self._needs_no_server(unit, now):
            return
        server = self.server
        if server is None:
            refused = unit.refused
            if refused is not None and not unit.runs_before_refused:
                error = refused.error
                assert error is not None
                # What stands before a name that is wrong counts, as it does in PostgreSQL: it goes to a server.
                if refused is unit.first or not isinstance(error, (UndefinedStatement, DuplicateStatement)):
                    self._answer_unsent(unit, error)
                    return
            if unit.ended_by == FE_SYNC and refused is None and self._only_prepares(unit):
                return
            if unit.length == 1 and unit.intent is None and unit.ended_by != FE_QUERY and unit.ended_by != 0:
                # A Sync or Flush alone: nothing is outstanding.
                if unit.ended_by == FE_SYNC:
                    self.forward(READY_IN_TRANSACTION if self.in_transaction else READY_IDLE)
                unit.clear()
                return
        elif not (self.in_transaction or self.pinned or self.awaits_sync or self.database.session_mode):
            # What runs no statement (a Sync alone, behind a COPY) belongs to what is under way.
            if server.replies.head is not None and unit.intent is not None:
                route = self._route_of(unit)
                if not self._fits(route):
                    if server.replies.copying:
                        self.stray(server)
                    self.waits |= FOR_IDLE
                    self.held_unit = unit
                    return
        if server is None:
            self.route = self._route_of(unit)
            if self.database.results is not None and self._cached(unit, now):
                return
            server = self._checkout(unit, now)
            if server is None:
                return
            if self.filling is not None:
                self._fills(now)
        elif self.filling is not None:
            # Its answer will stand behind the one that was to be kept.
            self.spoil()
        self._send(server, unit, now)

    def _fits(self, route: Route) -> bool:
        """Tell whether the connection held is in the pool that `route` asks for, on a host of the right role."""
        pool = self.pool
        return pool is not None and pool.name == route.pool and self.route.host_role == route.host_role

    def _checkout(self, unit: Unit, now: float) -> Server | None:
        """Borrow a server connection; None where the unit has to wait, or was answered with an error."""
        route = self.route
        cluster = self.database.cluster
        if cluster.paused:
            self.pool = None
            self.held_unit = unit
            self.waits |= FOR_SERVER
            cluster.park(self, now)
            return None
        try:
            after = self.last_write if self.database.read_your_writes else 0.0
            pool = cluster.pool_for(route.pool, route.host_role == "replica", after)
        except ClientError as error:
            if not self._strand(unit, error, now):
                self._unsent(unit, error)
            return None
        for intent in unit.special:
            if intent.pin and not self.database.session_mode and not pool.may_pin():
                self._unsent(unit, self._too_many_pins(pool))
                return None
        self.pool = pool
        if unit.special and self._asks_for_currval(unit):
            writer = self.last_writer
            if writer is not None and pool.take_again(self, writer, self.last_writer_uses):
                self.last_writer_uses += 1
                self.server = writer
                return writer
        server = pool.take(self, now)
        if server is None:
            self.held_unit = unit
            self.waits |= FOR_SERVER
            return None
        self.server = server
        return server

    def _asks_for_currval(self, unit: Unit) -> bool:
        """Tell whether the unit asks for what a sequence gave to this session."""
        return any("currval" in intent.pins for intent in unit.special)

    def _foresee(self, server: Server, unit: Unit, now: float) -> bool:
        """See to what statements of `unit` need before an idle connection serves them; False if it is reset first."""
        for intent in unit.special:
            if intent.shows_pool and POOL_PARAMETER not in self.profile.names:
                # To a server it is a parameter that does not exist until it is set.
                self.profile = self.database.profiles.of({**dict(self.profile.values), POOL_PARAMETER: ""})
        if not server.label or self.pinned or self.database.session_mode:
            return True
        if self._asks_for_currval(unit):
            if server is not self.last_writer or server.uses != self.last_writer_uses:
                # Others have used it: PostgreSQL is to say that this session has no value there.
                self._reset_first(server, unit, now)
                return False
        return True

    def _too_many_pins(self, pool: Pool) -> PoolExhausted:
        return PoolExhausted(
            "too many sessions keep their server connection for themselves",
            extra=f"pool={pool.name} pinned={pool.pinned} size={pool.limits.maximum}",
        )

    def _send(self, server: Server, unit: Unit, now: float) -> None:
        """Send `unit`, behind whatever the server connection lacks, in one write."""
        if server.replies.skipping:
            self._skip(server, unit)
            return
        out = self.out
        begin = self.begin
        lacks: list[Statement] | None = None
        if (unit.special or self.touched) and not self.awaits_sync:
            lacks = lacking(server, unit)
            if lacks and self.touched and server.replies.head is not None:
                # They are parsed apart from what it has set, with nothing outstanding.
                self.held_unit = unit
                self.waits |= FOR_IDLE
                return
        idle = (
            not ((self.in_transaction and begin is None) or self.awaits_sync) and server.replies.head is None
        )
        if idle:
            server.begun_at = now
            if unit.special and not self._foresee(server, unit, now):
                return
        if idle and (
            now >= server.renew_at
            or server.label != self.identity
            or server.profile is not self.profile
            or server.family != self.family
        ):
            if not self._prepare(server, unit, out, now):
                return
        elif self.restores and self.in_transaction and server.replies.head is None:
            self._restore(server, unit, out, now)
        was_empty = server.replies.head is None
        if begin is not None:
            self._begin(server, begin, out)
            if unit.halts and unit.ended_by == FE_QUERY:
                # A Sync of ours may have to stand in front of it, and it must not run should the BEGIN fail.
                self._begin_first(server, unit, out)
                return
        if lacks:
            parse_apart(server, unit, lacks, self.touched, out)
        if unit.loosened > self.loosened:
            self.loosened = unit.loosened
        # Whether the next transaction may write is settled before it begins: by a reset, or in front of it.
        decides = unit.sweeps or (self.loosened != TIGHT and unit.ends)
        for intent in unit.special:
            if unit.refused is not None and not unit.runs_before_refused:
                # Nothing of it runs, so nothing of it is left behind.
                break
            if self._decides_what_follows(intent):
                decides = True
            error = self._before(server, intent)
            if error is not None:
                first = unit.first
                if first is not None:
                    first.error = error
                break
        keep = (
            idle and begin is None and not (self.pinned or self.database.session_mode) and may_try_again(unit)
        )
        self.kept = unit.first if keep else None
        server.replies.told = False
        if keep and self.route.by_intent and self.database.retries_refused_reads:
            server.replies.tentative = True
        else:
            # What was kept back of the unit before is not asked for again.
            server.replies.settle()
        if self.statements.unproven and idle and begin is None:
            self._keep(unit)
        if not write_unit(server, unit, out, now, self.in_transaction, not self.touched, keep):
            # The rest of a long message that was not sent is not sent either.
            self.stream_to_server = False
        if self.kept is not None and self.kept.spared:
            server.replies.tentative = True
        if not unit.reads_only:
            # What goes to a replica is sent by a login that can't write: a READ ONLY transaction, a SET.
            self.wrote = self.wrote or self.route.host_role != REPLICA
            first_change = unit.intent
            if first_change is not None and first_change.kind != SESSION and first_change.kind != TRANSACTION:
                self.last_writer = server
                self.last_writer_uses = server.uses
            if len(unit.changing) > 0:
                self._changes(unit, now)
            if unit.begins:
                self.in_transaction = True
            elif unit.ends:
                self.in_transaction = False
        ended = unit.ended_by
        self.query_is_last = ended == FE_QUERY
        if ended == FE_SYNC:
            self.awaits_sync = False
        elif ended != FE_QUERY and (unit.length != 1 or ended != FE_FLUSH):
            # A Flush alone begins nothing: psycopg sends one behind the Sync of each pipeline.
            self.awaits_sync = True
        halts = unit.halts or decides or self.copy_halts or len(self.repeatable) > 0
        if unit.halts and self.awaits_sync and ended != FE_QUERY:
            # What follows waits for the answer: names, and what the server holds, may change.
            if unit.sweeps:
                self._write_back(server, out, now)
            out.put(FLUSH)
            server.crowded = True
            self.waits |= FOR_SWEEP
        unit.clear()
        out.write_to(server)
        if was_empty:
            server.replies.start()
        if server.replies.length > MAX_REPLIES:
            self.waits |= FOR_REPLIES
            server.crowded = True
        if halts and (self.query_is_last or not self.awaits_sync):
            self.waits |= FOR_IDLE
            if self.awaits_sync:
                # A Query behind an unfinished unit is not answered where the server skips to a Sync: see relieved().
                server.crowded = True
        if self.waits & FOR_CLIENT != 0:
            server.pause_reading()

    def _skip(self, server: Server, unit: Unit) -> None:
        """Send nothing of `unit` but its Sync: behind an error the server discards what precedes one."""
        undo(self, unit.first)
        self.stream_to_server = False
        if unit.ended_by == FE_SYNC:
            self.awaits_sync = False
            self.query_is_last = False
            self.out.put(SYNC)
            server.replies.push(Reply(SYNC_REPLY, FORWARD))
            self.out.write_to(server)
        unit.clear()

    def _keep(self, unit: Unit) -> None:
        """Keep a unit whose statements may have been prepared, for somebody else, before their tables changed."""
        self.repeatable = []
        ends = unit.ended_by == FE_SYNC or unit.ended_by == FE_FLUSH
        if not ends or unit.refused is not None or unit.bytes > MAX_KEPT:
            return
        message = unit.first
        first = True
        while message is not None:
            self.repeatable.append((message, message.data[message.start : message.end]))
            code = message.message_code
            if code == FE_BIND or code == FE_DESCRIBE:
                message.repeatable = first and message.name in self.statements.unproven
                first = False
            elif code == FE_EXECUTE:
                first = False
            message = message.following

    def _decides_what_follows(self, intent: Intent) -> bool:
        """Tell whether what follows a statement has to wait until that has taken effect.

        It takes away the identity, what is prepared, or values of the start; or it chooses the pool.
        """
        if intent.resets and (self.startup_profile.values or "all" in intent.resets):
            return True
        if intent.unclean and not intent.sweeps and not self.may_write:
            self.loosened = max(self.loosened, LOOSE)
            return True
        return POOL_PARAMETER in intent.settings

    def _before(self, server: Server, intent: Intent) -> ClientError | None:
        """Do what a statement other than a plain read asks for before it runs: pin, mark, track."""
        if intent.pin:
            pool = self.pool
            assert pool is not None
            if not (self.pinned or self.database.session_mode or pool.may_pin()):
                return self._too_many_pins(pool)
            for reason in intent.pins:
                self.pin(reason)
                # At the end of the transaction: what failed, was rolled back or dropped pins no longer.
                self.looks = self.looks or probed(reason)
        for reason in intent.unpins:
            if reason in self.pins:
                self.looks = True
            if reason == "currval" or reason == "all":
                # It may run elsewhere than where the sequence was asked.
                self.last_writer = None
        if intent.unclean and not intent.sweeps:
            server.unclean = intent.unclean
            server.renew_at = 0.0
        if intent.lasting:
            # DISCARD ALL would not take it away.
            server.retire_at = _NOW
        if intent.settings:
            self._touch(server, intent)
        for name in intent.local_settings:
            # Gone with the transaction, but for what is parsed under it.
            self.touched.setdefault(name, False)
        return None

    def _touch(self, server: Server, intent: Intent) -> None:
        """Note which settings a statement may change."""
        touched = self.touched
        for name in intent.settings:
            if name != "all":
                touched[name] = name in intent.resets
                continue
            held = server.profile.names if server.profile is not None else ()
            for each in [*touched, *self.profile.names, *self.startup_profile.names, *held]:
                touched[each] = True
        self.looks = self.looks or bool(touched)

    def _strand(self, unit: Unit, error: ClientError, now: float) -> bool:
        """Let `unit` wait for a host that can serve it; False where none will, or it has waited long enough."""
        if not isinstance(error, (NoPrimary, HostUnavailable)):
            return False
        database = self.database
        since = self.stranded_since
        if since == 0.0:
            self.stranded_since = since = now
        if now - since >= database.failover_wait or self.attempts >= database.failover_attempts:
            self.stranded_since = 0.0
            self.attempts = 0
            return False
        self.pool = None
        self.held_unit = unit
        self.waits |= FOR_SERVER
        database.cluster.strand(self)
        return True

    def reroute(self, now: float) -> None:
        """Look anew for a result or a host that can serve the unit that waits."""
        self.waits &= ~FOR_SERVER
        self.awaiting = None
        unit = self.held_unit
        self.held_unit = None
        if unit is not None:
            self._dispatch(unit, now)
        self.go_on(now)

    def granted(self, server: Server) -> None:
        """Go on with the unit that waited for a server connection."""
        self.server = server
        self.stranded_since = 0.0
        self.attempts = 0
        self.waits &= ~FOR_SERVER
        unit = self.held_unit
        self.held_unit = None
        # It was the server's last answer that made it free: reading the clock again tells nothing new.
        now = server.last_byte_at if server.last_byte_at > self.active_at else self.active_at
        if self.filling is not None:
            self._fills(now)
        if unit is not None:
            self._send(server, unit, now)
        self.go_on(now)

    def refused(self, error: ClientError) -> None:
        """Answer the unit that waited in vain; or try it elsewhere, where it is its host that fails."""
        self.waits &= ~FOR_SERVER
        now = time.monotonic()
        unit = self.held_unit
        self.held_unit = None
        if unit is not None:
            if isinstance(error, HostUnavailable) and self.attempts <= self.database.failover_attempts:
                self.attempts += 1
                # The pool that failed is passed over. Where there is no other the unit waits, but not for ever.
                self._dispatch(unit, now)
            else:
                self.stranded_since = 0.0
                self.attempts = 0
                self._unsent(unit, error)
        self.go_on(now)

    def _begin_first(self, server: Server, unit: Unit, out: Writer) -> None:
        """Let `unit` wait until the server has taken the BEGIN."""
        out.put(SYNC)
        server.replies.push(Reply(SYNC_REPLY, SKIP))
        out.write_to(server)
        self.held_unit = unit
        self.waits |= FOR_IDLE

    def starts_over(self) -> bool:
        """Tell whether a read of which nothing was answered yet is tried once more."""
        kept = self.kept
        if kept is None or self.ended or self.ending or self.repeated:
            return False
        return self.turning or not failed(kept)

    def lost(self, error: ClientError) -> None:
        """Try a read once more of which nothing was answered yet; else end the session."""
        server = self.server
        kept = self.kept
        if server is None or server.replies.told or kept is None or not self.starts_over():
            self.kept = None
            super().lost(error)
            return
        if self.pool is not None:
            self.pool.stats.retries.add("lost")
        self.server = None
        self.turning = False
        self.query_is_last = False
        self.prelude_under_way = False
        self.waits &= ~(FOR_SOCKET | FOR_REPLIES)
        self._dispatch(anew(kept), time.monotonic())

    def turn(self, now: float) -> None:
        """Send a read that was refused once more, to the primary if need be; its connection goes back."""
        server = self.server
        pool = self.pool
        kept = self.kept
        assert server is not None and pool is not None and kept is not None
        self.turning = False
        self.kept = None
        self.repeatable = []
        self.query_is_last = False
        if self.prelude_under_way:
            # As behind any error in a unit that came with it: the claim is set again before the next.
            self.prelude_under_way = False
            server.renew_at = 0.0
        self.server = None
        pool.give_back(server, now)
        self._dispatch(anew(kept), now)
