"""The server connections of one login on one host: idle, lent, opening, and who waits for them.

The pool decides and the caller does the I/O: `open` is handed in, and starts a connection in the background.
Nothing here awaits; a connection that stands idle is lent in the same call.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, final

from mypy_extensions import i64

from proxy.errors import ClientError, HostUnavailable, PoolExhausted, UpstreamUnavailable
from proxy.observe.stats import PoolStats
from proxy.upstream.errand import Check, Reset, Rollback
from proxy.upstream.server import CLOSED, IDLE, Borrower, Server

RESET_TIMEOUT: Final = 5.0
"""Seconds that a reset or rollback may take; it does no work that should take longer than the round trip."""

TEST_AFTER: Final = 30.0
"""Seconds after which an idle connection is tested before it is lent: as PgBouncer's server_check_delay. Firewalls and
NAT forget connections without a word, and a write that is sent on such a one can't be sent again."""

TEST_TIMEOUT: Final = 2.0
"""Seconds that this test may take: an empty query's round trip, over a slow tunnel too."""

SPREAD: Final = 0.2
"""Jitter of lifetimes, as a part of them, where nothing else is wanted."""

_NOW: Final = 1e-9
"""A time to retire at that has always come."""


@final
class PoolLimits:
    """The numbers that bound a pool; times in seconds, 0 for no limit."""

    def __init__(
        self,
        minimum: i64,
        maximum: i64,
        acquire_timeout: float,
        idle_timeout: float,
        max_lifetime: float,
        max_uses: i64,
        strict: bool,
        spread: float = SPREAD,
        reset_idle: float = 0.0,
    ) -> None:
        self.minimum: i64 = minimum
        self.maximum: i64 = maximum
        self.acquire_timeout = acquire_timeout
        self.idle_timeout = idle_timeout
        self.max_lifetime = max_lifetime
        self.max_uses: i64 = max_uses
        # isolation: strict, i.e. a connection never serves two users
        self.strict = strict
        # Which part of max_lifetime is left to chance.
        self.spread = spread
        # Seconds after which an idle connection is reset before another user asks for it; 0.0 for never.
        self.reset_idle = reset_idle


@final
class WaitQueue:
    """Who waits for a connection, the oldest first: a list linked through the borrowers themselves."""

    def __init__(self) -> None:
        self.first: Borrower | None = None
        self.last: Borrower | None = None
        self.length: i64 = 0

    def append(self, borrower: Borrower) -> None:
        """Let `borrower` wait behind all others."""
        last = self.last
        if last is None:
            self.first = borrower
        else:
            last.next_waiter = borrower
        self.last = borrower
        self.length += 1

    def append_first(self, borrower: Borrower) -> None:
        """Let `borrower` wait before all others: it had its turn already."""
        borrower.next_waiter = self.first
        self.first = borrower
        if self.last is None:
            self.last = borrower
        self.length += 1

    def pop(self) -> Borrower | None:
        """Take out the oldest; None where nobody waits."""
        first = self.first
        if first is not None:
            self.first = first.next_waiter
            first.next_waiter = None
            if self.first is None:
                self.last = None
            self.length -= 1
        return first

    def remove(self, borrower: Borrower) -> None:
        """Take out `borrower`, wherever it stands, if it does."""
        before: Borrower | None = None
        at = self.first
        while at is not None and at is not borrower:
            before = at
            at = at.next_waiter
        if at is None:
            return
        if before is None:
            self.first = at.next_waiter
        else:
            before.next_waiter = at.next_waiter
        if self.last is at:
            self.last = before
        at.next_waiter = None
        self.length -= 1


@final
class Pool:
    """Server connections under one login on one host."""

    def __init__(self, name: str, host: str, limits: PoolLimits, log_part: bytes) -> None:
        self.name = name
        self.host = host
        self.limits = limits
        self.log_part = log_part
        self.open: Callable[[Pool], None] | None = None
        self.servers: list[Server] = []
        self.idle: dict[str, list[Server]] = {}
        self.idle_count: i64 = 0
        self.opening: i64 = 0
        self.waiters = WaitQueue()
        # Connections on an errand of the proxy's own, and when they are given up.
        self.errands: dict[Server, float] = {}
        self.pinned: i64 = 0
        self.draining = False
        # Counters, read by the metrics.
        self.stats = PoolStats()
        self.failures_in_a_row: i64 = 0
        self.last_failure: str = ""
        # It has no connection and its host gave none at the last attempt: whoever can go elsewhere does.
        self.failing = False

    @property
    def size(self) -> i64:
        """Return how many connections there are, being opened or open."""
        return len(self.servers) + self.opening

    def take(self, borrower: Borrower, now: float) -> Server | None:
        """Lend an idle connection to `borrower`, or let it wait and return None.

        Its own come first, then a clean one, then the least recently used of somebody else, which is reset
        first. A new one is opened where none is idle and the limit allows it.
        """
        if self.idle_count > 0 and self.waiters.first is None:
            own = self.idle.get(borrower.identity)
            if not own:
                own = self.idle.get("")
            if own:
                server = own.pop()
                self.idle_count -= 1
                if now - server.last_used > TEST_AFTER:
                    borrower.waiting_since = now
                    self.waiters.append(borrower)
                    self._check(server, now)
                    return None
                self.stats.assignments += 1
                server.lend(borrower)
                return server
        borrower.waiting_since = now
        self.waiters.append(borrower)
        if self.idle_count > 0:
            self._free_a_stranger(now)
        self._grow()
        return None

    def take_again(self, borrower: Borrower, server: Server, uses: i64) -> bool:
        """Lend `server` if nobody has used it since it had served so many; False where that is not so."""
        shelf = self.idle.get(server.label)
        if server.uses != uses or shelf is None or server not in shelf:
            return False
        shelf.remove(server)
        self.idle_count -= 1
        self.stats.assignments += 1
        server.lend(borrower)
        return True

    def leave(self, borrower: Borrower) -> None:
        """Take `borrower` out of the queue of those who wait."""
        self.waiters.remove(borrower)

    def give_back(self, server: Server, now: float) -> None:
        """Take `server` back from its borrower: nothing is owed and no transaction is open."""
        server.take_back(now)
        if server.state == CLOSED:
            return
        limits = self.limits
        if server.cancels > 0:
            # Whoever waits for the cancel to be done gives it back again.
            return
        if (
            self.draining
            or (server.retire_at > 0.0 and now >= server.retire_at)
            or (limits.max_uses > 0 and server.uses >= limits.max_uses)
        ):
            server.close()
            return
        if server.unclean:
            self._reset(server, now)
            return
        first = self.waiters.first
        if first is not None:
            label = server.label
            if label is first.identity or label == "" or label == first.identity:
                self.waiters.pop()
                self.stats.assignments += 1
                server.lend(first)
                first.granted(server)
            else:
                self._reset(server, now)
            return
        shelf = self.idle.get(server.label)
        if shelf is None:
            self.idle[server.label] = [server]
        else:
            shelf.append(server)
        self.idle_count += 1

    def opened(self, server: Server, now: float) -> None:
        """Add a connection that has just logged in."""
        self.opening -= 1
        self.failures_in_a_row = 0
        self.last_failure = ""
        self.failing = False
        if self.limits.max_lifetime > 0.0:
            # Jitter, so that connections opened together do not end together.
            server.retire_at = now + self.limits.max_lifetime * (1.0 - self.limits.spread * random.random())
        self.servers.append(server)
        self.give_back(server, now)

    def open_failed(self, error: ClientError) -> None:
        """Learn that a connection could not be opened; who waits is told if there is no other to wait for."""
        self.opening -= 1
        self.stats.connect_failures += 1
        self.failures_in_a_row += 1
        self.last_failure = error.extra or error.message
        if self.servers:
            return
        if isinstance(error, HostUnavailable):
            # Other attempts that are under way will hardly do better: nobody has to wait for that.
            self.failing = True
            self.refuse_all(error)
        elif self.opening == 0:
            self.refuse_all(error)

    def opened_in_vain(self) -> None:
        """Learn that an attempt to open a connection counts for nothing: the pool logs in otherwise by now."""
        self.opening -= 1
        self._grow()

    def hope(self) -> None:
        """Learn that the host answers: opening a connection is worth a try."""
        self.failing = False
        self.failures_in_a_row = 0

    def refuse_all(self, error: ClientError) -> None:
        """Tell everybody who waits that no connection will come."""
        waiters = self.waiters
        self.waiters = WaitQueue()
        while (borrower := waiters.pop()) is not None:
            borrower.refused(error)

    def closed(self, server: Server) -> None:
        """Forget a connection that has ended, and open another where somebody waits."""
        if server in self.servers:
            self.servers.remove(server)
            self.stats.server_parses += server.parses
            self.stats.server_spared += server.spared
        shelf = self.idle.get(server.label)
        if shelf is not None and server in shelf:
            shelf.remove(server)
            self.idle_count -= 1
        self.errands.pop(server, None)
        self._grow()

    def close_all(self, error: ClientError) -> None:
        """Close every connection; sessions that hold one lose it, with `error`."""
        for server in list(self.servers):
            server.fail(error)

    def give_up_silent(self, since: float, error: ClientError) -> None:
        """Close the connections on which nothing has come since then: their host is gone without a word."""
        for server in list(self.servers):
            if server.last_byte_at < since:
                server.fail(error)

    def retire_all(self, addresses: frozenset[str]) -> int:
        """Let the connections to other addresses than these end when they come back; returns how many there are."""
        retired = 0
        for server in self.servers:
            if server.peer and server.peer not in addresses:
                server.retire_at = _NOW
                retired += 1
        return retired

    def reconnect(self) -> None:
        """Close what is idle now, and the rest as it comes back; new connections may be opened at once."""
        for server in self.servers:
            server.retire_at = _NOW
        self._close_idle()

    def pause(self, now: float) -> None:
        """Close what is idle now, and the rest as it comes back; who waits looks for another place to wait."""
        waiters = self.waiters
        self.waiters = WaitQueue()
        self.drain()
        while (borrower := waiters.pop()) is not None:
            borrower.reroute(now)

    @property
    def is_empty(self) -> bool:
        """Tell whether there is no connection, nor one on its way."""
        return len(self.servers) == 0 and self.opening == 0

    def resume(self) -> None:
        """Open connections again."""
        self.draining = False
        self._grow()

    def reset_done(self, server: Server, now: float) -> None:
        """Take back a connection whose DISCARD ALL was confirmed."""
        self.errands.pop(server, None)
        server.forget_session()
        self.give_back(server, now)

    def roll_back(self, server: Server, now: float) -> None:
        """Take back a connection whose borrower left a transaction open."""
        self.errands[server] = now + RESET_TIMEOUT
        Rollback(server, self._came_back).start()

    def abandon(self, server: Server, now: float) -> None:
        """Close `server` unless the answer that nobody waits for any more comes in time."""
        self.errands[server] = now + RESET_TIMEOUT

    def came_late(self, server: Server, now: float) -> None:
        """Take back a connection whose answer came, perhaps after it was abandoned."""
        self._came_back(server, now)

    def _came_back(self, server: Server, now: float) -> None:
        self.errands.pop(server, None)
        self.give_back(server, now)

    def maintain(self, now: float) -> None:
        """See to limits and timeouts; to be called each second or so."""
        limits = self.limits
        while limits.acquire_timeout > 0.0:
            first = self.waiters.first
            if first is None or now - first.waiting_since < limits.acquire_timeout:
                break
            self.waiters.pop()
            self.stats.acquire_timeouts += 1
            first.refused(self.exhausted())
        self.give_up(now)
        for label, shelf in list(self.idle.items()):
            for server in list(shelf):
                too_old = server.retire_at > 0.0 and now >= server.retire_at
                unused = limits.idle_timeout > 0.0 and now - server.last_used >= limits.idle_timeout
                if too_old or (unused and self.size > limits.minimum) or self.draining:
                    server.close()
                elif label and 0.0 < limits.reset_idle <= now - server.last_used and not limits.strict:
                    shelf.remove(server)
                    self.idle_count -= 1
                    self._reset(server, now)
            if not self.idle.get(label):
                self.idle.pop(label, None)
        self._grow()
        if not self.draining and self.failures_in_a_row == 0:
            while self.size < limits.minimum:
                self._open_one()

    def give_up(self, now: float) -> None:
        """Close connections whose errand takes too long."""
        for server, deadline in list(self.errands.items()):
            if now > deadline:
                server.fail(UpstreamUnavailable("a server connection didn't answer the proxy's own question"))

    def exhausted(self) -> PoolExhausted:
        """Return the error for somebody who waited in vain."""
        return PoolExhausted(
            extra=f"pool={self.name} host={self.host} size={self.limits.maximum} waiting={self.waiters.length + 1}",
            hint="Try again, or raise the pool's max.",
        )

    def may_pin(self) -> bool:
        """Tell whether one more session may keep its connection: at most max - 1 are pinned."""
        return self.pinned + 1 < self.limits.maximum

    def parses(self) -> int:
        """Return how many named statements servers were sent to parse."""
        return self.stats.server_parses + sum([server.parses for server in self.servers])

    def spared(self) -> int:
        """Return how many Parses of sessions were answered at once, as the server held the statement."""
        return self.stats.server_spared + sum([server.spared for server in self.servers])

    def drain(self) -> None:
        """Close what is idle now, and the rest as it comes back."""
        self.draining = True
        self._close_idle()

    def _close_idle(self) -> None:
        for shelf in list(self.idle.values()):
            for server in list(shelf):
                server.close()

    def _grow(self) -> None:
        while self.waiters.length > self.opening and not self.draining:
            if self.size >= self.limits.maximum or self.waiters.length <= self.opening + len(self.errands):
                return
            self._open_one()

    def _open_one(self) -> None:
        if self.open is not None:
            self.opening += 1
            self.open(self)

    def _reset(self, server: Server, now: float) -> None:
        if self.limits.strict:
            server.close()
            return
        self.stats.resets += 1
        self.errands[server] = now + RESET_TIMEOUT
        Reset(server, self.reset_done).start()

    def _check(self, server: Server, now: float) -> None:
        """Ask a connection that has stood idle for long whether it is still there."""
        self.errands[server] = now + TEST_TIMEOUT
        Check(server, self._came_back).start()

    def _free_a_stranger(self, now: float) -> None:
        """Reset the idle connection that was used least recently, for whoever waits."""
        oldest: Server | None = None
        for shelf in self.idle.values():
            for server in shelf:
                if oldest is None or server.last_used < oldest.last_used:
                    oldest = server
        if oldest is not None and oldest.state == IDLE:
            self.idle[oldest.label].remove(oldest)
            self.idle_count -= 1
            self._reset(oldest, now)
