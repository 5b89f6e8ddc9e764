"""The hosts of one database, their roles, which pool serves what, and who waits because none does."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Final, final

from mypy_extensions import i64

from proxy.errors import ClientError, HostUnavailable, NoPrimary, UpstreamUnavailable
from proxy.upstream.breaker import Breaker
from proxy.upstream.pool import Pool, WaitQueue
from proxy.upstream.server import Borrower

log = logging.getLogger(__name__)

ROUND_ROBIN: Final = 0
LEAST_CONNECTIONS: Final = 1
RANDOM: Final = 2

_ANY_LAG: Final = 1e18


@final
class Host:
    """One PostgreSQL server: what is known of it, and its pools by name."""

    def __init__(self, name: str, address: str, port: int, role: str, breaker: Breaker | None = None) -> None:
        self.name = name
        self.address = address
        self.port = port
        self.role = role
        self.breaker = Breaker() if breaker is None else breaker
        # It has answered, and its breaker has been closed since.
        self.up = False
        self.in_recovery = False
        # The timeline of a primary, or the one that a standby receives.
        self.timeline: i64 = 0
        # The cluster's identifier, the same on a primary and its standbys; 0 where it isn't known.
        self.system: i64 = 0
        self.pools: dict[str, Pool] = {}
        # Everything that had happened on the primary by this monotonic time has been replayed here.
        self.fresh_as_of: float = 0.0
        self.lag: float = 0.0
        self.response_time: float = 0.0
        self.last_error: str = "not probed yet"
        # A primary that was replaced, and does not know it: nothing is sent there.
        self.is_outdated = False
        # It answered what makes it unfit to be used.
        self.is_unfit = False
        # When the first of the failures came that have come since its last answer; 0.0 for none.
        self.failing_since: float = 0.0

    @property
    def is_primary(self) -> bool:
        """Tell whether writes may go here, as far as the host itself knows."""
        return self.up and not self.in_recovery and self.role != "replica"

    @property
    def is_replica(self) -> bool:
        """Tell whether this is a standby that serves reads."""
        return self.up and (self.in_recovery or self.role == "replica")

    def probed(self, in_recovery: bool, response_time: float) -> None:
        """Note that the host answered."""
        if not self.up:
            log.info("host %s is up as %s", self.name, "replica" if in_recovery else "primary")
        elif in_recovery != self.in_recovery:
            log.warning("host %s is now %s", self.name, "a replica" if in_recovery else "the primary")
        self.breaker.succeeded()
        self.up = True
        self.in_recovery = in_recovery
        self.response_time = response_time
        self.failing_since = 0.0
        self.is_unfit = False
        self.last_error = ""
        for pool in self.pools.values():
            pool.hope()

    def failed(self, reason: str, now: float, silent: bool = False) -> None:
        """Note that the host gave no good answer; after some failures in a row it is left alone for a while.

        With `silent` it gave none at all: connections on which nothing has come since the first failure are
        given up, for nothing will come on them.
        """
        if self.failing_since == 0.0:
            self.failing_since = now
        self.last_error = reason
        if self.breaker.failed(now):
            self._leave_alone(reason, silent)

    def unfit(self, reason: str, now: float) -> None:
        """Note that the host answered what makes it unfit to be used."""
        self.last_error = reason
        self.is_unfit = True
        if self.breaker.trip(now):
            self._leave_alone(reason, False)

    def _leave_alone(self, reason: str, silent: bool) -> None:
        if self.up:
            log.error("host %s is down: %s", self.name, reason)
        self.up = False
        error = HostUnavailable(f"host {self.name} is down", extra=f"host={self.name}: {reason}")
        for pool in self.pools.values():
            pool.refuse_all(error)
            if silent:
                pool.give_up_silent(self.failing_since, error)

    def dismiss(self, error: ClientError) -> None:
        """Close every server connection: what is done here would be lost, or is out of date."""
        for pool in self.pools.values():
            pool.close_all(error)


@final
class Cluster:
    """The hosts of one database."""

    def __init__(self, name: str, hosts: list[Host], balance: i64, max_lag: float) -> None:
        self.name = name
        self.hosts = hosts
        self.balance: i64 = balance
        self.max_lag = max_lag
        self._turn: i64 = 0
        self.primary: Host | None = None
        self.replicas: list[Host] = []
        # Whoever no host can serve at the moment, the oldest first.
        self.stranded = WaitQueue()
        # Nothing is sent until it is resumed: whoever needs a connection stands here, however long.
        self.paused = False
        self.parked = WaitQueue()
        # The highest timeline on which a primary was seen, and the cluster whose it was.
        self._timeline: i64 = 0
        self._system: i64 = 0
        self._refused: str = ""
        # Told that another host is the primary, or none: what the last one took may be lost.
        self.primary_changed: Callable[[], None] | None = None

    @property
    def had_primary(self) -> bool:
        """Tell whether there was a primary since the start; else replicas are all that is configured, perhaps."""
        return self._timeline > 0

    def roles_changed(self) -> None:
        """Work out anew who is primary and who serves reads, after hosts were probed.

        A primary on an older timeline than one seen before is an old one that came back: what it took would be
        lost, so it gets nothing. Of two on one timeline nobody can say which is right: neither gets writes.
        """
        primaries = [host for host in self.hosts if host.is_primary]
        primaries.sort(key=_timeline, reverse=True)
        chosen = primaries[0] if primaries else None
        refused = ""
        if len(primaries) > 1 and primaries[0].timeline == primaries[1].timeline:
            names = ", ".join([host.name for host in primaries if host.timeline == primaries[0].timeline])
            refused = f"two primaries on one timeline ({names}): writes are refused"
            chosen = None
        elif chosen is not None and chosen.system == self._system and chosen.timeline < self._timeline:
            refused = (
                f"{chosen.name} is a primary on timeline {chosen.timeline}, behind {self._timeline}, which was"
                " seen before: it gets no statements"
            )
            chosen = None
        if refused and refused != self._refused:
            log.error("%s: %s", self.name, refused)
        self._refused = refused
        if chosen is not None:
            self._timeline = chosen.timeline
            self._system = chosen.system
        if chosen is not self.primary and chosen is not None:
            log.info("%s: %s is the primary, on timeline %d", self.name, chosen.name, chosen.timeline)
        changed = chosen is not self.primary
        self.primary = chosen
        if changed and self.primary_changed is not None:
            self.primary_changed()
        self.replicas = [host for host in self.hosts if host.is_replica]
        for host in self.hosts:
            was_outdated = host.is_outdated
            host.is_outdated = (
                host.is_primary and host.timeline < self._timeline and host.system == self._system
            )
            if host.is_outdated and not was_outdated:
                host.dismiss(HostUnavailable(f"host {host.name} is not the primary any more"))

    def pool_for(self, name: str, wants_replica: bool, after: float) -> Pool:
        """Return the pool `name` of the host that serves this.

        `after` is the monotonic time of the session's last write: a replica must have replayed all of it
        ("read your writes"); 0.0 for none. Raises NoPrimary or HostUnavailable where no host can serve it now,
        UpstreamUnavailable where none ever will.
        """
        if wants_replica and self.replicas:
            host = self._replica(name, after, self.max_lag)
            if host is not None:
                return host.pools[name]
        primary = self.primary
        if primary is not None:
            pool = primary.pools.get(name)
            if pool is None:
                raise UpstreamUnavailable(f'there is no pool "{name}"')
            if not pool.failing:
                return pool
        if wants_replica:
            # Nobody else is left: what is late is better than nothing.
            host = self._replica(name, after, _ANY_LAG)
            if host is not None:
                return host.pools[name]
        raise self.unavailable(wants_replica)

    def unavailable(self, reads: bool) -> ClientError:
        """Return the error for a statement that no host can serve."""
        known = "; ".join([f"{host.name}: {_state(host)}" for host in self.hosts])
        if self._refused:
            known += "; " + self._refused
        return HostUnavailable(extra=known) if reads else NoPrimary(extra=known)

    def strand(self, borrower: Borrower) -> None:
        """Let `borrower` wait until a host can serve it."""
        self.stranded.append(borrower)

    def leave(self, borrower: Borrower) -> None:
        """Take `borrower` out of the queues of those who wait for a host, or for the end of a pause."""
        self.stranded.remove(borrower)
        self.parked.remove(borrower)

    def resume(self, now: float) -> None:
        """Have everybody who waits for a host look for one again, the oldest first."""
        waiting = self.stranded
        self.stranded = WaitQueue()
        while (borrower := waiting.pop()) is not None:
            borrower.reroute(now)

    def park(self, borrower: Borrower, now: float) -> None:
        """Let `borrower` wait until the pause ends."""
        borrower.waiting_since = now
        self.parked.append(borrower)

    def pause(self, now: float) -> None:
        """Lend no connection any more, and close each when it comes back; everybody who waits waits for the end."""
        self.paused = True
        for host in self.hosts:
            for pool in host.pools.values():
                pool.pause(now)
        self.resume(now)

    def refuse_parked(self, error: ClientError) -> None:
        """Tell everybody who waits for the end of a pause that it will not come."""
        waiting = self.parked
        self.parked = WaitQueue()
        while (borrower := waiting.pop()) is not None:
            borrower.refused(error)

    def unpause(self, now: float) -> None:
        """Lend connections again; whoever waited looks for one, the oldest first."""
        self.paused = False
        for host in self.hosts:
            for pool in host.pools.values():
                pool.resume()
        waiting = self.parked
        self.parked = WaitQueue()
        while (borrower := waiting.pop()) is not None:
            borrower.reroute(now)

    def _replica(self, name: str, after: float, max_lag: float) -> Host | None:
        fit: list[Host] = []
        for host in self.replicas:
            if host.fresh_as_of > after and host.lag <= max_lag:
                pool = host.pools.get(name)
                if pool is not None and not pool.failing:
                    fit.append(host)
        count: i64 = len(fit)
        if count <= 1:
            return fit[0] if count == 1 else None
        if self.balance == LEAST_CONNECTIONS:
            best = fit[0]
            least = _load(best.pools[name])
            for host in fit:
                load = _load(host.pools[name])
                if load < least:
                    best = host
                    least = load
            return best
        if self.balance == RANDOM:
            return random.choice(fit)
        self._turn += 1
        return fit[self._turn % count]


def _timeline(host: Host) -> i64:
    return host.timeline


def _state(host: Host) -> str:
    """Return what keeps `host` from serving: its last error, or that of its pools."""
    if host.last_error:
        return host.last_error
    for pool in host.pools.values():
        if pool.failing:
            return pool.last_failure
    return "a standby" if host.in_recovery else "up"


def _load(pool: Pool) -> i64:
    lent: i64 = len(pool.servers) - pool.idle_count
    return lent + pool.waiters.length
