"""Answering reads with results that are kept, and keeping what servers answer.

A unit is looked up when it would be lent a server connection: it was read, permitted and counted by then. What is kept
is one statement outside a transaction, by a session that holds no connection; in doubt it goes to a server.
"""

from __future__ import annotations

import time
from typing import Final

from librt.strings import read_i32_be
from mypy_extensions import i64

from proxy.observe.record import pool_part, route_part
from proxy.query.intent import READONLY
from proxy.session.deferring import Deferring
from proxy.session.results import (
    AFTER_EXCESS,
    AFTER_FAILURE,
    EVERYTHING,
    MAX_KEY,
    Entry,
    Results,
)
from proxy.session.state import FOR_SERVER
from proxy.session.unit import Message, Unit
from proxy.upstream.pool import RESET_TIMEOUT
from proxy.upstream.server import Server
from proxy.wire.codes import FE_BIND, FE_DESCRIBE, FE_EXECUTE, FE_PARSE, FE_QUERY, FE_SYNC, HEADER
from proxy.wire.messages import PARSE_COMPLETE, SYNC, message, parse
from proxy.wire.reply import SINGLE

MAX_CHANGED: Final = 1_000
"""Relations that one transaction is known to have changed; with more it has changed everything."""

# With any other value than these a text is not read as the proxy's parser reads it.
_PLAIN_VALUES: Final = {
    "client_encoding": frozenset(["utf8", "utf-8", "utf_8", "unicode"]),
    "standard_conforming_strings": frozenset(["on", "true", "yes", "1"]),
}

_POOL_PART: Final = pool_part("cache", "")
_FRESH_PART: Final = route_part("cache", "kept result")
_STALE_PART: Final = route_part("cache", "kept result, being asked for anew")

# What stands behind Bind in a statement that is one message: Execute and Sync, and perhaps a Describe.
_ENDED: Final[i64] = 15
_ALL_ROWS: Final = b"\0\0\0\0"
_DESCRIBE_PORTAL: Final = b"D\x00\x00\x00\x06P\x00"


class Caching(Deferring):
    """Looks units up, lets them wait for an answer that is under way, and takes down answers to be kept."""

    def _cached(self, unit: Unit, now: float) -> bool:
        """Answer `unit` with a kept result, or let it wait for one; False where a server has to be asked."""
        results = self.database.results
        intent = unit.intent
        if (
            results is None
            or intent is None
            or not intent.cacheable
            or intent.target != READONLY
            or self.filling is not None
            or self.in_transaction
            or not unit.reads_only
            or unit.refused is not None
            or unit.tried
            or unit.halts
            or len(unit.special) > 0
            or self.database.cluster.paused
        ):
            return False
        ttl = results.time_to_live(intent.cache_hint, self.key.caches, self.route.pool)
        if ttl <= 0.0:
            return False
        ran = sole_statement(unit)
        if ran is None:
            return False
        scope = self._scope()
        if len(scope) == 0:
            return False
        key = scope + asked_of(unit)
        if len(key) > MAX_KEY:
            return False
        entry = results.find(key, now, ttl, self.last_write)
        if entry is not None:
            if now - entry.as_of <= ttl:
                self._serve(results, entry, unit, ran, False)
            else:
                alone = asked_alone(unit, ran)
                self._serve(results, entry, unit, ran, True)
                self._ask_anew(results, entry, ran, alone, now)
            return True
        results.misses += 1
        if results.refuses(key, now):
            return False
        flight = results.flights.get(key)
        if flight is None:
            self.filling = results.begin(key, intent.relations, ran, now)
            return False
        if not flight.may_serve(self.last_write):
            return False
        results.waits += 1
        self.pool = None
        self.awaiting = flight
        self.held_unit = unit
        self.waits |= FOR_SERVER
        self.waiting_since = now
        flight.waiters.append(self)
        return True

    def _scope(self) -> bytes:
        """Return what a result depends on beside the statement: who asks, with which settings, under which login.

        All that an identity carries is in it, as PostgreSQL is told it. Without one the pool's login is all that
        PostgreSQL knows, so that results are everybody's. b"" where texts may mean something else than they were
        taken for.
        """
        if self.scope_profile is not self.profile or self.scope_pool != self.route.pool:
            self.scope_profile = self.profile
            self.scope_pool = self.route.pool
            parts = [self.identity if self.database.signed else "", self.scope_pool]
            for name, value in self.profile.values:
                plain = _PLAIN_VALUES.get(name)
                if plain is not None and value.strip("' ").lower() not in plain:
                    self.scope = b""
                    return self.scope
                parts.append(f"{name}={value}")
            # No part can hold a NUL, and none but the first can be empty: this can't be read in two ways.
            self.scope = "\0".join(parts).encode("utf-8", "surrogatepass") + b"\0\0"
        return self.scope

    def _serve(self, results: Results, entry: Entry, unit: Unit, ran: Message, is_stale: bool) -> None:
        """Answer `unit` with `entry`, as its server would have."""
        results.hits += 1
        if is_stale:
            results.stale_hits += 1
        if entry.family != self.family:
            reported = results.families.get(entry.family)
            if reported is not None:
                self._tell_reported(entry.family, reported)
        first = unit.first
        is_parsed = first is not None and (first.message_code == FE_PARSE or first.parsing)
        self.forward(PARSE_COMPLETE + entry.body if is_parsed else entry.body)
        statements = self.statements
        if statements.unnamed_portal is not None or statements.portals:
            statements.end_transaction()
        unit.clear()
        self.uses += 1
        database = self.database
        intent = ran.intent
        assert intent is not None
        statement = ran.statement
        text = b""
        if database.logs_texts:
            text = ran.text if statement is None else statement.sql
        queued_at = ran.queued_at
        duration_us: i64 = i64((self.clock() - queued_at) * 1_000_000.0)
        bytes_in: i64 = ran.bytes_in if ran.kind == SINGLE else ran.end - ran.start
        database.access.statement(
            self.log_part,
            _POOL_PART,
            _STALE_PART if is_stale else _FRESH_PART,
            intent,
            queued_at + database.wall_offset,
            0,
            duration_us,
            duration_us,
            entry.rows,
            bytes_in,
            entry.bytes_out,
            False,
            False,
            b"",
            b"",
            ran.traceparent if statement is None else statement.traceparent,
            text,
        )

    # -- keeping answers

    def _ask_anew(self, results: Results, entry: Entry, ran: Message, alone: bytes, now: float) -> None:
        """Have `entry` asked for anew beside this session, unless somebody does already."""
        refresh = self.database.refresh
        if refresh is None or entry.key in results.flights or results.refuses(entry.key, now):
            return
        flight = results.begin(entry.key, entry.relations, ran, now)
        if not refresh(self, flight, alone):
            results.fail(flight, now)

    def _fills(self, now: float) -> None:
        """Note that the question whose answer is to be kept is sent to the connection that was lent."""
        flight = self.filling
        pool = self.pool
        if flight is None or pool is None:
            return
        cluster = self.database.cluster
        primary = cluster.primary
        as_of = now
        if primary is None or primary.name != pool.host:
            as_of = 0.0
            for host in cluster.hosts:
                if host.name == pool.host:
                    as_of = host.fresh_as_of if host.fresh_as_of < now else now
        if as_of <= 0.0:
            # Nobody knows how old its answer is.
            self.spoil()
        else:
            flight.sent(as_of)

    def filled(self, server: Server, now: float) -> None:
        """Keep the answer that has come to its end, and let everybody go on who waits for it."""
        flight = self.filling
        self.filling = None
        results = self.database.results
        if flight is None or results is None:
            return
        if server.family not in results.families:
            reported = server.replies.parameters
            results.families[server.family] = {
                name: value for name, value in server.defaults.items() if name in reported
            }
        results.land(flight, server.family, now)

    def take_down(self, data: bytes) -> None:
        """Take down a piece of the answer that is to be kept, unless that becomes too large."""
        flight = self.filling
        results = self.database.results
        if flight is not None and (results is None or flight.take(data) > results.max_entry):
            self.spoil(AFTER_EXCESS)

    def spoil(self, seconds: float = AFTER_FAILURE) -> None:
        """Keep nothing of the answer that is under way, and let go of those who wait for it."""
        flight = self.filling
        self.filling = None
        results = self.database.results
        if flight is not None and results is not None:
            results.fail(flight, time.monotonic(), seconds)

    # -- writes

    def _changes(self, unit: Unit, now: float) -> None:
        """Note what the transaction under way changes, and drop what was read from there."""
        results = self.database.results
        if results is None:
            return
        changed = self.changed
        for intent in unit.changing:
            if intent.unseen or len(changed) > MAX_CHANGED:
                changed[EVERYTHING] = None
            else:
                for name in intent.relations:
                    changed[name] = None
        self.wrote = True
        results.wrote(changed, now)

    def changes_end(self, now: float) -> None:
        """Drop, once its transaction has ended, what was read from where it changed something."""
        changed = self.changed
        self.changed = {}
        results = self.database.results
        if results is not None:
            results.wrote(changed, now)

    def changes_may_end(self) -> None:
        """Do the same where the end was not seen: the server may commit as long as it isn't cut off."""
        self.changes_end(time.monotonic() + RESET_TIMEOUT)


def sole_statement(unit: Unit) -> Message | None:
    """Return the message that runs the one statement of `unit`; None where it is of another form than is kept.

    These are a Query; and Bind, Execute and Sync of the unnamed portal, perhaps with a Parse of the unnamed statement
    before, and a Describe of the portal between them.
    """
    first = unit.first
    last = unit.last
    if first is None or last is None:
        return None
    if unit.length == 1:
        if first.kind == SINGLE:
            return first
        is_whole = first.message_code == FE_QUERY and first.end <= len(first.data)
        return first if is_whole and first.edit is None else None
    if unit.length > 5 or unit.ended_by != FE_SYNC:
        return None
    bind: Message | None = first
    if first.message_code == FE_PARSE:
        if len(first.name) > 0:
            return None
        bind = first.following
    if bind is None or bind.message_code != FE_BIND or bind.name_start != bind.start + HEADER + 1:
        return None
    statement = bind.statement
    if statement is None or statement.by_sql or bind.edit is not None or bind.end > len(bind.data):
        return None
    if bind is not first and first.statement is not statement:
        return None
    ran = bind.following
    if ran is not None and ran.message_code == FE_DESCRIBE:
        if ran.data[ran.start : ran.end] != _DESCRIBE_PORTAL:
            return None
        ran = ran.following
    if ran is None or ran.message_code != FE_EXECUTE or ran.edit is not None or ran.following is not last:
        return None
    is_unnamed = ran.data[ran.start + HEADER] == 0
    return ran if is_unnamed and last.message_code == FE_SYNC else None


def asked_of(unit: Unit) -> bytes:
    """Return what a unit that `sole_statement` has looked at asks for, whatever its statement is called.

    Its statement's number stands for text, parameter types, and the settings under which it is parsed. The Execute's
    row limit, four bytes, and what the Bind says of values and formats stand behind it.
    """
    first = unit.first
    assert first is not None
    if first.message_code == FE_QUERY:
        return b"Q" + first.data[first.start + HEADER : first.end - 1]
    is_described = False
    limit = _ALL_ROWS
    if first.kind == SINGLE:
        data = first.data
        bind: i64 = first.start
        if data[bind] == FE_PARSE:
            bind += 1 + i64(read_i32_be(data, bind + 1))
        bind_end: i64 = bind + 1 + i64(read_i32_be(data, bind + 1))
        rest = data[bind + HEADER + 2 + len(first.name) : bind_end]
        is_described = first.end - bind_end > _ENDED
        statement = first.statement
    else:
        bound: Message | None = first.following if first.message_code == FE_PARSE else first
        assert bound is not None
        rest = bound.data[bound.name_end + 1 : bound.end]
        ran = bound.following
        if ran is not None and ran.message_code == FE_DESCRIBE:
            is_described = True
            ran = ran.following
        assert ran is not None
        limit = ran.data[ran.end - len(_ALL_ROWS) : ran.end]
        statement = bound.statement
    assert statement is not None
    return (b"D%d\0" if is_described else b"E%d\0") % statement.number + limit + rest


def asked_alone(unit: Unit, ran: Message) -> bytes:
    """Return the messages that ask the same for somebody who has prepared nothing."""
    asked = asked_of(unit)
    if asked.startswith(b"Q"):
        return message(FE_QUERY, asked[1:] + b"\0")
    statement = ran.statement
    assert statement is not None
    limit_at = asked.index(b"\0") + 1
    rest = asked[limit_at + len(_ALL_ROWS) :]
    described = _DESCRIBE_PORTAL if asked.startswith(b"D") else b""
    return (
        parse(b"", statement.sql, statement.types)
        + message(FE_BIND, b"\0\0" + rest)
        + described
        + message(FE_EXECUTE, b"\0" + asked[limit_at : limit_at + len(_ALL_ROWS)])
        + SYNC
    )
