"""One configured database at work: its hosts, pools, keys, functions and signing key, kept up to date.

What sessions need on the path of a query stands in Database; what keeps it current, through the control
connections, stands here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import asyncpg

from proxy import config as model
from proxy.auth.keystore import FileKeyStore, KeyStore
from proxy.config.changes import DatabaseChanges
from proxy.errors import ClientError, NoPrimary, UpstreamUnavailable
from proxy.observe.record import AccessBuffer, pool_part
from proxy.observe.slow import NEVER
from proxy.observe.stats import ProxyStats
from proxy.preflight.finding import Finding
from proxy.preflight.gate import BYPASSED, BypassError, alarms, bypasses, remedy
from proxy.query.cache import IntentCache
from proxy.query.functions import SNAPSHOT_QUERY, FunctionCatalog
from proxy.query.intent import Intent
from proxy.session.database import Database
from proxy.session.keeping import Keeping
from proxy.session.key_reading import KeyReading
from proxy.session.reload import Preparation, Ready
from proxy.session.results import Results
from proxy.session.session import Session
from proxy.session.signing import Signing
from proxy.session.usage import write_usage
from proxy.tasks import spawn, stop
from proxy.transport.way import Way
from proxy.tunnel import Tunnel, way_to
from proxy.upstream.access_table import AccessTable
from proxy.upstream.breaker import Breaker
from proxy.upstream.cluster import LEAST_CONNECTIONS, RANDOM, ROUND_ROBIN, Cluster, Host
from proxy.upstream.control import Control
from proxy.upstream.health import Health, Thresholds
from proxy.upstream.login import Login, connect
from proxy.upstream.names import Names
from proxy.upstream.pool import SPREAD, Pool, PoolLimits
from proxy.upstream.server import Server

log = logging.getLogger(__name__)

_BALANCE = {"round_robin": ROUND_ROBIN, "least_connections": LEAST_CONNECTIONS, "random": RANDOM}

_KEY_CHANNEL = "sluice_keys"
_CACHE_CHANNEL = "sluice_cache"

_ENSURE_PARTITIONS = "SELECT sluice.ensure_partitions()"

_REFRESH_FUNCTIONS = 300.0
_REFRESH_PARTITIONS = 6 * 3600.0
_WATCH_RIGHTS = 300.0
_REFRESH_SIGNER = 5.0
_WRITE_USAGE = 5.0
_LAST_USAGE = 2.0
_RETRY = 1.0
_MAINTENANCE = 0.1
# Seconds for which a process that takes no more clients keeps a server connection that nobody uses.
_RETIRED_IDLE = 1.0

_SPREAD_FAR = 0.5
"""Jitter of lifetimes where the way itself ends connections, and all at once: between half and all of the time."""

_RESET_FAR = 0.25
"""Seconds after which idle connections over a long way are reset: another user would wait a round trip for that. Who
used one last loses nothing, as identity, settings and missing Parses go ahead of a statement in the same write. Only
where nothing is written: elsewhere a session may yet ask for `currval`."""


class Served:
    """One entry of `databases`."""

    def __init__(
        self,
        name: str,
        settings: model.Database,
        config: model.Config,
        access: AccessBuffer,
        stats: ProxyStats,
        is_first: bool = True,
    ) -> None:
        """Begin with nothing connected; of several workers the first does what has to be done once."""
        self.name = name
        self._settings = settings
        self._signed = config.identity.mode == "signed"
        self.stats = stats
        watching = settings.health
        self.cluster = Cluster(
            name,
            [_host(host, watching) for host in settings.hosts],
            _BALANCE[settings.pools["readonly"].balance],
            settings.health.max_lag,
        )
        self._ways = {host.name: way_to(host) for host in settings.hosts}
        self.controls = {host.name: self._control(settings, self._ways[host.name]) for host in settings.hosts}
        self.health = Health(
            self.cluster,
            self.controls,
            Thresholds(watching.interval, watching.retry_after),
            self._vet if self._signed else None,
            Names(),
        )
        # Hosts that must not be used, and why.
        self._bypassed: dict[str, list[Finding]] = {}
        # How each pool logs in; and pools that are to end with their last connection, with when whoever keeps one
        # for itself has to let go of it, in seconds of the monotonic clock.
        self._logins: dict[Pool, Login] = {}
        self.leaving: dict[Pool, float] = {}
        self._started = False
        self._alarmed: set[Finding] = set()
        routing = settings.routing
        intents = IntentCache(FunctionCatalog.builtin(routing.safe_functions), routing.max_parse_bytes)
        self.database = Database(name, self.cluster, intents, _unfinished(), access, self.stats)
        self.database.signed = self._signed
        self.database.token_ttl = config.identity.token_ttl
        self.database.session_mode = settings.pool_mode == "session"
        self._keeping = Keeping(self.database)
        self._take_over(settings)
        self._strict = config.identity.isolation == "strict"
        for host in self.cluster.hosts:
            for pool_name, pool in settings.pools.items():
                self._add_pool(host, pool_name, pool, self._strict)
        self.keys: KeyStore
        if config.auth.keys == "file":
            self.keys = FileKeyStore(config.auth.keys_file)
        else:
            reading = KeyReading(self.cluster, self.controls, self.health.alarm)
            self.keys = KeyStore(reading.fetch, config.auth.cache_ttl, time.monotonic)
            reading.knows = self.keys.knows
        self.watch_slow(config.access_log.slow_query)
        self.access_table = AccessTable(self._primary_control)
        self._makes_partitions = is_first and config.access_log.sinks.count("table") > 0
        self._functions: frozenset[tuple[str, str, str]] = frozenset()
        self._listens = config.auth.keys == "database"
        self._signing = Signing(self.database, self.controls)
        self._tasks: list[asyncio.Task[Any]] = []
        self._listener: asyncio.Task[None] | None = None
        self._hearing: asyncio.Task[None] | None = None
        self.cluster.primary_changed = self._primary_changed

    # -- life

    async def start(self) -> None:
        """Find out who is who, read functions and signing key, and keep all that current.

        Raises BypassError where a pool's login could pass by row-level security.
        """
        slow = any(way.slow_to_open for way in self._ways.values())
        await self.health.probe(self._settings.pool_defaults.connect_timeout if slow else 0.0)
        if self._bypassed:
            raise BypassError(self._bypassed)
        self._started = True
        kept = [(self._refresh_functions, _REFRESH_FUNCTIONS), (self._refresh_signer, _REFRESH_SIGNER)]
        if self._listens:
            kept.append((self._write_usage, _WRITE_USAGE))
        if self._makes_partitions:
            kept.append((self._ensure_partitions, _REFRESH_PARTITIONS))
        if self._signed:
            kept.append((self._watch_rights, _WATCH_RIGHTS))
        for refresh, _ in kept:
            try:
                await refresh()
            except (NoPrimary, UpstreamUnavailable) as error:
                log.error("database %s: %s (%s)", self.name, error.message, error.extra)
        self._maintain(time.monotonic())
        self._tasks = [
            spawn(self.health.run(), f"{self.name}: health"),
            spawn(self._maintenance(), f"{self.name}: pools"),
            *(
                spawn(self._keep(refresh, interval), f"{self.name}: {refresh.__name__}")
                for refresh, interval in kept
            ),
        ]
        self._start_listening()
        self._start_hearing()

    # -- a reload

    async def prepare(self, settings: model.Database, changes: DatabaseChanges) -> Ready:
        """Do all that can fail before these settings are in force; returns what `switch` takes, or `drop` undoes.

        Raises SluiceError, and nothing has changed then.
        """
        ready = Ready(settings, changes)
        preparation = Preparation(self.name, self.cluster, self.controls, self._ways, self._signed)

        def log_in(pool: str, way: Way) -> Login:
            return self._login(pool, settings.pools[pool], way)

        try:
            await preparation.prepare(
                ready,
                lambda host: _host(host, settings.health),
                lambda way: self._control(settings, way),
                log_in,
            )
        except BaseException:
            ready.drop()
            raise
        return ready

    def switch(self, ready: Ready, config: model.Config) -> None:
        """Go by the settings that were prepared, from now on.

        What goes lends no connection any more, and whoever waited for one looks for another; who holds one keeps it
        to the end of the transaction. Whoever keeps one for longer has listen.drain_timeout for that.
        """
        now = time.monotonic()
        until = now + config.listen.drain_timeout
        before, self._settings = self._settings, ready.settings
        changes, settings, cluster = ready.changes, ready.settings, self.cluster
        for name, contexts in ready.contexts.items():
            self._ways[name].renew(contexts)
        leaving = self._exchange_hosts(ready)
        self._strict = config.identity.isolation == "strict"
        for host in cluster.hosts:
            leaving += [host.pools.pop(name) for name in changes.pools_removed if name in host.pools]
            for name in settings.pools:
                if name not in host.pools:
                    self._add_pool(host, name, settings.pools[name], self._strict)
            host.pools = {name: host.pools[name] for name in settings.pools}
            self._change_pools(host, changes)
        self._go_on_counting(leaving)
        self._take_over(settings, before)
        if config.identity.mode == "signed":
            self._signing.sign_for(config.identity.token_ttl)
        self.keys.read_each(config.auth.cache_ttl)
        self.watch_slow(config.access_log.slow_query)
        cluster.roles_changed()
        for pool in leaving:
            self.leaving[pool] = until
            pool.pause(now)
        cluster.resume(now)
        self._maintain(now)
        if changes.hosts_added or changes.hosts_removed or changes.control:
            self.health.alarm()
            self._primary_changed()

    def _exchange_hosts(self, ready: Ready) -> list[Pool]:
        """Let hosts go and come; returns the pools of those that go."""
        gone = [host for host in self.cluster.hosts if host.name in ready.changes.hosts_removed]
        for host in gone:
            self.health.forget(host)
            self.controls.pop(host.name).retire()
            self._bypassed.pop(host.name, None)
            del self._ways[host.name]
        for name, control in ready.controls.items():
            self.controls[name].retire()
            self.controls[name] = control
        for name, newcomer in ready.newcomers.items():
            self._ways[name] = newcomer.way
            self.controls[name] = newcomer.control
        hosts = {host.name: host for host in self.cluster.hosts if host not in gone}
        hosts |= {name: newcomer.host for name, newcomer in ready.newcomers.items()}
        # Another list: whoever goes through the old one waits for answers meanwhile.
        self.cluster.hosts = [hosts[host.name] for host in ready.settings.hosts]
        return [pool for host in gone for pool in host.pools.values()]

    def _change_pools(self, host: Host, changes: DatabaseChanges) -> None:
        """Give the pools of `host` their numbers, and those with another login that."""
        for name, pool in host.pools.items():
            settings = self._settings.pools[name]
            to_strict = self._strict and not pool.limits.strict
            pool.limits = _limits(name, settings, self._strict, self._ways[host.name])
            if name in changes.passwords or name in changes.logins:
                self._logins[pool] = self._login(name, settings, self._ways[host.name])
                pool.hope()
            if name in changes.passwords or to_strict:
                # With isolation: strict, none may have served somebody before.
                pool.reconnect()

    def _go_on_counting(self, leaving: list[Pool]) -> None:
        """Have pools that take the places of others go on with their counters, which never go back."""
        now = {(pool.host, pool.name): pool for pool in self.pools()}
        for pool in leaving:
            if (successor := now.get((pool.host, pool.name))) is not None:
                successor.stats = pool.stats

    def _take_over(self, settings: model.Database, before: model.Database | None = None) -> None:
        """Go by these numbers and switches from now on."""
        self.query_timeout = settings.timeouts.query
        self.idle_in_transaction = settings.timeouts.idle_in_transaction
        self.client_idle = settings.timeouts.client_idle
        database, health, routing = self.database, settings.health, settings.routing
        database.failover_wait = health.failover_wait
        database.failover_attempts = health.failover_attempts
        self.cluster.max_lag = health.max_lag
        self.cluster.balance = _BALANCE[settings.pools["readonly"].balance]
        database.routing = routing.enabled
        database.lazy_begin = routing.lazy_begin
        database.read_your_writes = routing.read_your_writes
        database.retries_refused_reads = routing.retry_readonly_errors
        database.max_parse_bytes = routing.max_parse_bytes
        self._keeping.take_over(settings)
        if before is None:
            return
        if before.health != health:
            self.health.thresholds = Thresholds(health.interval, health.retry_after)
            for host in self.cluster.hosts:
                host.breaker.failures_to_open = health.failures_to_open
                host.breaker.retry_after = health.retry_after
        if before.routing != routing:
            database.intents.max_parse_bytes = routing.max_parse_bytes
            database.intents.set_catalog(self._catalog())

    def _catalog(self) -> FunctionCatalog:
        safe = self._settings.routing.safe_functions
        return (
            FunctionCatalog.from_rows(self._functions, safe)
            if self._functions
            else FunctionCatalog.builtin(safe)
        )

    def _start_listening(self) -> None:
        """Hear of changed keys at the primary as it is reached now."""
        if self._listens:
            if self._listener is not None:
                self._listener.cancel()
                self.keys.changed_all()
            self._listener = spawn(self._listen(), f"{self.name}: key changes")

    def _start_hearing(self) -> None:
        """Hear of what is written past the proxy, at the primary as it is reached now."""
        if self._hearing is not None:
            self._hearing.cancel()
        self._hearing = spawn(self._hear_writes(), f"{self.name}: writes elsewhere")

    def _primary_changed(self) -> None:
        """Listen to this primary: the last one may live on, and tell nothing of what happens here.

        Every result is dropped, as what the last primary took may be lost.
        """
        if self._listener is not None:
            self._start_listening()
        self._keeping.flush()
        if self._hearing is not None:
            self._start_hearing()

    def overstays(self, session: Session, now: float) -> bool:
        """Tell whether a session still keeps for itself, in no transaction, a connection that should be gone."""
        server, pool = session.server, session.pool
        if server is None or pool is None or now < self.leaving.get(pool, now + 1.0):
            return False
        return not (session.in_transaction or session.awaits_sync) and server.replies.empty

    def watch_slow(self, seconds: float) -> None:
        """Tell the log of statements that take so long; 0 for none."""
        self.database.slow_us = int(seconds * 1e6) if seconds > 0.0 else NEVER

    def retire(self) -> None:
        """Keep no more server connections than sessions use: another process opens its own meanwhile."""
        for pool in self.pools():
            limits = pool.limits
            pool.limits = PoolLimits(
                0,
                limits.maximum,
                limits.acquire_timeout,
                _RETIRED_IDLE,
                limits.max_lifetime,
                limits.max_uses,
                limits.strict,
            )

    async def stop(self) -> None:
        """End the tasks and close every server connection that is idle."""
        hearing, self._hearing = self._hearing, None
        await stop(*self._tasks, self._listener, hearing)
        self.health.stop()
        if self._listens:
            with contextlib.suppress(ClientError, TimeoutError):
                async with asyncio.timeout(_LAST_USAGE):
                    await self._write_usage()
        for pool in self.every_pool():
            pool.drain()

    async def close_control(self) -> None:
        """Close the control connections, which the access log needs to the end."""
        for control in self.controls.values():
            await control.close()

    def pools(self) -> list[Pool]:
        """Return all pools of all hosts."""
        return [pool for host in self.cluster.hosts for pool in host.pools.values()]

    def every_pool(self) -> list[Pool]:
        """Return all pools, also those that a reload took away and that still have connections."""
        return [*self.pools(), *self.leaving]

    @property
    def settings(self) -> model.Database:
        """Return what is in force of the configuration."""
        return self._settings

    def is_tunnelled(self, host: str) -> bool:
        """Tell whether the host of this name is reached through a Cloudflare tunnel."""
        return isinstance(self._ways.get(host), Tunnel)

    def login_of(self, pool: str) -> str:
        """Return the role under which the connections of `pool` log in; the first pool's where there is none."""
        pools = self._settings.pools
        return (pools.get(pool) or next(iter(pools.values()))).user

    def ready(self) -> bool:
        """Tell whether the database can be served."""
        serves = self.cluster.primary is not None or bool(self.cluster.replicas)
        return serves and (not self._signed or self.database.signer is not None)

    # -- what is kept current

    async def _vet(self, host: str, connection: asyncpg.Connection[Any]) -> str:
        """Return why `host` must not be used, "" if it may: asked each time before it counts as up."""
        found = await bypasses(connection, self._settings)
        if not found:
            self._bypassed.pop(host, None)
            return ""
        if self._started and self._bypassed.get(host) != found:
            log.error("database %s: %s", self.name, BypassError({host: found}))
        self._bypassed[host] = found
        # Clients are told this, and need to know no more.
        return f"{BYPASSED}: see `pgsluice check`"

    async def _keep(self, refresh: Callable[[], Any], interval: float) -> None:
        delay = interval
        while True:
            await asyncio.sleep(delay)
            try:
                await refresh()
                delay = interval
            except ClientError as error:
                log.warning("database %s: %s (%s)", self.name, error.message, error.extra)
                delay = _RETRY

    async def _watch_rights(self) -> None:
        """Tell the log, once, of rights and presets that weren't there when the hosts were vetted.

        A pool at work isn't stopped: whoever may grant such rights may also mean to.
        """
        async with self._any_control().connection() as connection:
            found = set(await alarms(connection, self._settings))
        for finding in found - self._alarmed:
            log.error("database %s: %s; %s", self.name, finding.what, remedy(finding))
        self._alarmed = found

    async def _refresh_functions(self) -> None:
        """Read which functions may write; statements that were classified with other knowledge are forgotten."""
        async with self._any_control().connection() as connection:
            rows = await connection.fetch(SNAPSHOT_QUERY)
        functions = frozenset((row[0], row[1], row[2]) for row in rows)
        if functions != self._functions:
            self._functions = functions
            self.database.intents.set_catalog(self._catalog())

    async def _refresh_signer(self) -> None:
        self.database.server_offset = self.health.server_offset
        self.database.wall_offset = time.time() - time.monotonic()
        if self._signed:
            await self._signing.refresh()

    async def _write_usage(self) -> None:
        """Write back what keys were used for; what is under way counts next time."""
        await write_usage(self.database.usage, self._primary_control)

    async def _ensure_partitions(self) -> None:
        """Make the access log's partitions of the next days: a row without one would be refused."""
        async with self._primary_control().connection() as connection:
            await connection.fetch(_ENSURE_PARTITIONS)

    async def _listen(self) -> None:
        """Hear of changed keys as they happen; after an interruption every cached key is read again."""
        while True:
            with contextlib.suppress(ClientError):
                await self._primary_control().listen(_KEY_CHANNEL, self.keys.changed)
            await asyncio.sleep(_RETRY)
            self.keys.changed_all()

    async def _hear_writes(self) -> None:
        """Hear, while results are kept, of relations that were written elsewhere.

        Behind an interruption nothing is known of what happened meanwhile.
        """
        while True:
            results = self.database.results
            if results is not None:
                with contextlib.suppress(ClientError):
                    await self._primary_control().listen(
                        _CACHE_CHANNEL, self._keeping.heard, self._keeping.flush
                    )
                    self._keeping.flush()
            await asyncio.sleep(_RETRY)

    async def _maintenance(self) -> None:
        while True:
            await asyncio.sleep(_MAINTENANCE)
            self._maintain(time.monotonic())

    @property
    def results(self) -> Results:
        """Return the results that are kept; none where that is off."""
        return self._keeping.results

    def flush_results(self) -> None:
        """Drop every result that is kept."""
        self._keeping.flush()

    def _maintain(self, now: float) -> None:
        self._keeping.tick(now)
        first = self.cluster.stranded.first
        if first is not None and now - first.stranded_since >= self.database.failover_wait:
            # Whoever has waited long enough is told so, the others wait on.
            self.cluster.resume(now)
        for host in self.cluster.hosts:
            if host.up and not host.is_outdated:
                for pool in host.pools.values():
                    pool.maintain(now)
            else:
                for pool in host.pools.values():
                    pool.give_up(now)
        for pool in list(self.leaving):
            pool.maintain(now)
            if pool.is_empty:
                log.info("pool %s on %s: its last connection has ended", pool.name, pool.host)
                del self.leaving[pool]
                self._logins.pop(pool, None)

    # -- wiring

    def _control(self, settings: model.Database, way: Way) -> Control:
        login = settings.control or settings.pools["primary"]
        return Control(
            way,
            settings.database,
            login.user,
            login.password.get_secret_value(),
            settings.pool_defaults.connect_timeout,
        )

    def _primary_control(self) -> Control:
        primary = self.cluster.primary
        if primary is None:
            raise NoPrimary()
        return self.controls[primary.name]

    def _any_control(self) -> Control:
        """Return the primary's control connections, a replica's where there is no primary."""
        primary = self.cluster.primary
        if primary is not None:
            return self.controls[primary.name]
        for host in self.cluster.replicas:
            return self.controls[host.name]
        raise self.cluster.unavailable(True)

    def _add_pool(self, host: Host, name: str, settings: model.Pool, strict: bool) -> None:
        way = self._ways[host.name]
        limits = _limits(name, settings, strict, way)
        pool = Pool(name, host.name, limits, pool_part(name, host.name))
        # As all others are in a pause.
        pool.draining = self.cluster.paused
        self._logins[pool] = login = self._login(name, settings, way)

        def start_opening(wanting: Pool) -> None:
            spawn(self._open(wanting), f"connect {login.address}")

        pool.open = start_opening
        host.pools[name] = pool

    def _login(self, pool: str, settings: model.Pool, way: Way) -> Login:
        return Login(
            way,
            self._settings.database,
            settings.user,
            settings.password.get_secret_value(),
            pool == "readonly",
            settings.connect_timeout,
        )

    def _closed(self, pool: Pool) -> Callable[[Server], None]:
        """Return what is told that a connection of `pool` has ended; the monitor learns of one that ended by itself."""

        def closed(server: Server) -> None:
            if server.broke:
                self.health.alarm()
            pool.closed(server)

        return closed

    async def _open(self, pool: Pool) -> None:
        await _after_failures(pool)
        started = time.monotonic()
        login = self._logins[pool]
        try:
            server = await connect(login, self._closed(pool))
        except ClientError as error:
            if self._logins[pool] is not login:
                pool.opened_in_vain()
                return
            if pool.failures_in_a_row == 0:
                log.warning("pool %s on %s: %s", pool.name, pool.host, error.extra)
            pool.open_failed(error)
            if pool.failing:
                self.health.alarm()
            return
        if self._logins[pool] is not login:
            server.close()
            pool.opened_in_vain()
            return
        now = time.monotonic()
        pool.stats.connect_time.observe(int((now - started) * 1e6))
        pool.opened(server, now)


def _host(host: model.Host, watching: model.Health) -> Host:
    return Host(
        host.name,
        host.host,
        host.port,
        host.role,
        Breaker(watching.failures_to_open, watching.retry_after),
    )


async def _after_failures(pool: Pool) -> None:
    """Wait where the last attempt to open a connection failed: a host that refuses is asked once a second.

    Not longer than until its host has answered otherwise.
    """
    until = time.monotonic() + _RETRY
    while pool.failures_in_a_row and time.monotonic() < until:
        await asyncio.sleep(_MAINTENANCE)


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


def _unfinished() -> Intent:
    """Return what stands for a unit whose end has not come: it may yet write."""
    return IntentCache(FunctionCatalog.builtin(), 1).lookup(b"-- the rest of an unfinished unit")
