"""The pools of one database on all its hosts: made, changed and ended as its settings say, and kept filled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from proxy import config as model
from proxy.config.changes import DatabaseChanges
from proxy.observe.record import pool_part
from proxy.session.session import Session
from proxy.transport.way import Way
from proxy.upstream.cluster import Cluster, Host
from proxy.upstream.login import Login
from proxy.upstream.opener import Opener
from proxy.upstream.pool import SPREAD, Pool, PoolLimits

log = logging.getLogger(__name__)

_RETIRED_IDLE: Final = 1.0
"""Seconds for which a process that takes no more clients keeps a server connection that nobody uses."""

_SPREAD_FAR: Final = 0.5
"""Jitter of lifetimes where the way itself ends connections, and all at once: between half and all of the time."""

_RESET_FAR: Final = 0.25
"""Seconds after which idle connections over a long way are reset: another user would wait a round trip for that. Who
used one last loses nothing, as identity, settings and missing Parses go ahead of a statement in the same write. Only
where nothing is written: elsewhere a session may yet ask for `currval`."""


class Pools:
    """The pools of one database, each with what opens its connections; and those that a reload took away."""

    def __init__(
        self,
        cluster: Cluster,
        ways: Mapping[str, Way],
        alarm: Callable[[], None],
        settings: model.Database,
        strict: bool,
    ) -> None:
        """Make the pools of all hosts; `ways` lead there, and `alarm` is told of a host that doesn't answer there.

        With `strict` no connection serves two users.
        """
        self._cluster = cluster
        self._ways = ways
        self._alarm = alarm
        self._settings = settings
        self._strict = strict
        self._openers: dict[Pool, Opener] = {}
        # Pools that are to end with their last connection, with when whoever keeps one for itself has to let go of
        # it, in seconds of the monotonic clock.
        self._leaving: dict[Pool, float] = {}
        for host in cluster.hosts:
            for name in settings.pools:
                self._add(host, name)

    def of_hosts(self) -> list[Pool]:
        """Return the pools of all hosts."""
        return [pool for host in self._cluster.hosts for pool in host.pools.values()]

    def all(self) -> list[Pool]:
        """Return the same, and those that a reload took away and that still have connections."""
        return [*self.of_hosts(), *self._leaving]

    def login_of(self, pool: str) -> str:
        """Return the role under which the connections of `pool` log in; the first pool's where there is none."""
        pools = self._settings.pools
        return (pools.get(pool) or next(iter(pools.values()))).user

    def maintain(self, now: float) -> None:
        """Open and close what is due; to be called several times a second."""
        for host in self._cluster.hosts:
            if host.up and not host.is_outdated:
                for pool in host.pools.values():
                    pool.maintain(now)
            else:
                for pool in host.pools.values():
                    pool.give_up(now)
        for pool in list(self._leaving):
            pool.maintain(now)
            if pool.is_empty:
                log.info("pool %s on %s: its last connection has ended", pool.name, pool.host)
                del self._leaving[pool]
                self._openers.pop(pool, None)

    # -- a reload

    def change(
        self, settings: model.Database, changes: DatabaseChanges, strict: bool, gone: list[Pool]
    ) -> list[Pool]:
        """Go by these settings on the hosts as they are now; `gone` are the pools of hosts that went.

        Returns the pools that have to go, for `let_go`.
        """
        self._settings, self._strict = settings, strict
        leaving = list(gone)
        for host in self._cluster.hosts:
            leaving += [host.pools.pop(name) for name in changes.pools_removed if name in host.pools]
            for name in settings.pools:
                if name not in host.pools:
                    self._add(host, name)
            host.pools = {name: host.pools[name] for name in settings.pools}
            self._change_those_of(host, changes)
        self._go_on_counting(leaving)
        return leaving

    def let_go(self, leaving: list[Pool], now: float, until: float) -> None:
        """Have these lend no connection any more; who waits looks for another, who keeps one has time until then."""
        for pool in leaving:
            self._leaving[pool] = until
            pool.pause(now)

    def overstays(self, session: Session, now: float) -> bool:
        """Tell whether a session still keeps for itself, in no transaction, a connection that should be gone."""
        server, pool = session.server, session.pool
        if server is None or pool is None or now < self._leaving.get(pool, now + 1.0):
            return False
        return not (session.in_transaction or session.awaits_sync) and server.replies.empty

    def _change_those_of(self, host: Host, changes: DatabaseChanges) -> None:
        """Give the pools of `host` their numbers, and those with another login that."""
        way = self._ways[host.name]
        for name, pool in host.pools.items():
            to_strict = self._strict and not pool.limits.strict
            pool.limits = _limits(name, self._settings.pools[name], self._strict, way)
            if name in changes.passwords or name in changes.logins:
                self._openers[pool].login = login_for(name, self._settings, way)
                pool.hope()
            if name in changes.passwords or to_strict:
                # With isolation: strict, none may have served somebody before.
                pool.reconnect()

    def _go_on_counting(self, leaving: list[Pool]) -> None:
        """Have pools that take the places of others go on with their counters, which never go back."""
        now = {(pool.host, pool.name): pool for pool in self.of_hosts()}
        for pool in leaving:
            if (successor := now.get((pool.host, pool.name))) is not None:
                successor.stats = pool.stats

    # -- the end

    def retire(self) -> None:
        """Keep no more server connections than sessions use: another process opens its own meanwhile."""
        for pool in self.of_hosts():
            pool.limits.minimum = 0
            pool.limits.idle_timeout = _RETIRED_IDLE

    def drain(self) -> None:
        """Close every connection that is idle, and the others as they come back."""
        for pool in self.all():
            pool.drain()

    def _add(self, host: Host, name: str) -> None:
        way = self._ways[host.name]
        limits = _limits(name, self._settings.pools[name], self._strict, way)
        pool = Pool(name, host.name, limits, pool_part(name, host.name))
        # As all others are in a pause.
        pool.draining = self._cluster.paused
        self._openers[pool] = opener = Opener(login_for(name, self._settings, way), self._alarm)
        pool.open = opener.start
        host.pools[name] = pool


def login_for(pool: str, settings: model.Database, way: Way) -> Login:
    """Return how the connections of `pool` log in over `way`."""
    login = settings.pools[pool]
    return Login(
        way,
        settings.database,
        login.user,
        login.password.get_secret_value(),
        pool == "readonly",
        login.connect_timeout,
    )


def _limits(name: str, settings: model.Pool, strict: bool, way: Way) -> PoolLimits:
    lifetimes = [seconds for seconds in (settings.max_lifetime, way.longest) if seconds > 0.0]
    return PoolLimits(
        settings.min,
        settings.max,
        settings.acquire_timeout,
        settings.idle_timeout,
        min(lifetimes, default=0.0),
        settings.max_uses,
        strict,
        _SPREAD_FAR if way.longest > 0.0 else SPREAD,
        _RESET_FAR if way.slow_to_open and name == "readonly" else 0.0,
    )
