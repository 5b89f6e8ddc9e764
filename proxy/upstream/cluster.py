"""The hosts of one database, their roles, and which pool serves what."""

from __future__ import annotations

import logging
import random
from typing import Final, final

from mypy_extensions import i64

from proxy.errors import ClientError, NoPrimary, UpstreamUnavailable
from proxy.upstream.pool import Pool

log = logging.getLogger(__name__)

ROUND_ROBIN: Final = 0
LEAST_CONNECTIONS: Final = 1
RANDOM: Final = 2


@final
class Host:
    """One PostgreSQL server: what is known of it, and its pools by name."""

    def __init__(self, name: str, address: str, port: int, role: str) -> None:
        self.name = name
        self.address = address
        self.port = port
        self.role = role
        self.up = False
        self.in_recovery = False
        self.timeline: i64 = 0
        self.pools: dict[str, Pool] = {}
        # Everything that had happened on the primary by this monotonic time has been replayed here.
        self.fresh_as_of: float = 0.0
        self.lag: float = 0.0
        self.response_time: float = 0.0
        self.last_error: str = "not probed yet"
        self.failures: i64 = 0
        self.retry_at: float = 0.0

    @property
    def is_primary(self) -> bool:
        """Tell whether writes may go here."""
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
        self.up = True
        self.in_recovery = in_recovery
        self.response_time = response_time
        self.failures = 0
        self.last_error = ""

    def failed(self, reason: str, now: float, failures_to_open: i64, retry_after: float) -> None:
        """Note that the host did not answer; after some failures in a row it is left alone for a while."""
        self.failures += 1
        self.last_error = reason
        if self.failures >= failures_to_open:
            self.retry_at = now + retry_after
            if self.up:
                log.error("host %s is down: %s", self.name, reason)
            self.up = False
            error = UpstreamUnavailable(extra=f"host={self.name}: {reason}")
            for pool in self.pools.values():
                pool.refuse_all(error)


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

    def roles_changed(self) -> None:
        """Work out anew who is primary and who serves reads, after the hosts were probed."""
        primaries = [host for host in self.hosts if host.is_primary]
        primaries.sort(key=_timeline, reverse=True)
        if len(primaries) > 1 and primaries[0].timeline == primaries[1].timeline:
            log.error(
                "two primaries on one timeline (%s, %s): writes are refused",
                primaries[0].name,
                primaries[1].name,
            )
            self.primary = None
        else:
            self.primary = primaries[0] if primaries else None
        self.replicas = [host for host in self.hosts if host.is_replica]

    def pool_for(self, name: str, wants_replica: bool, after: float) -> Pool:
        """Return the pool `name` of the host that serves this.

        `after` is the monotonic time of the session's last write: a replica must have replayed all of it
        ("read your writes"); 0.0 for none. Raises NoPrimary or UpstreamUnavailable.
        """
        if wants_replica and self.replicas:
            host = self._replica(name, after)
            if host is not None:
                return host.pools[name]
        primary = self.primary
        if primary is not None:
            pool = primary.pools.get(name)
            if pool is None:
                raise UpstreamUnavailable(f'there is no pool "{name}"')
            return pool
        raise self.unavailable(wants_replica)

    def unavailable(self, reads: bool) -> ClientError:
        """Return the error for a statement that no host can serve."""
        known = "; ".join([f"{host.name}: {host.last_error or 'up'}" for host in self.hosts])
        return UpstreamUnavailable(extra=known) if reads else NoPrimary(extra=known)

    def _replica(self, name: str, after: float) -> Host | None:
        fit: list[Host] = []
        for host in self.replicas:
            if host.fresh_as_of > after and host.lag <= self.max_lag and name in host.pools:
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


def _load(pool: Pool) -> i64:
    lent: i64 = len(pool.servers) - pool.idle_count
    return lent + pool.waiters.length
