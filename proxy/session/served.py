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
from proxy.session.results import Results
from proxy.session.signing import Signing
from proxy.session.usage import write_usage
from proxy.tasks import spawn, stop
from proxy.transport.tls import ServerTls, TlsError
from proxy.upstream.access_table import AccessTable
from proxy.upstream.breaker import Breaker
from proxy.upstream.cluster import LEAST_CONNECTIONS, RANDOM, ROUND_ROBIN, Cluster, Host
from proxy.upstream.control import Control
from proxy.upstream.health import Health, Thresholds
from proxy.upstream.login import Login, connect
from proxy.upstream.names import Names
from proxy.upstream.pool import Pool, PoolLimits
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


class Served:
    """One entry of `databases`."""

    def __init__(
        self,
        name: str,
        settings: model.Database,
        config: model.Config,
        access: AccessBuffer,
        stats: ProxyStats,
    ) -> None:
        self.name = name
        self._settings = settings
        self._signed = config.identity.mode == "signed"
        self.stats = stats
        watching = settings.health
        self.cluster = Cluster(
            name,
            [
                Host(
                    host.name,
                    host.host,
                    host.port,
                    host.role,
                    Breaker(watching.failures_to_open, watching.retry_after),
                )
                for host in settings.hosts
            ],
            _BALANCE[settings.pools["readonly"].balance],
            settings.health.max_lag,
        )
        self._tls = {host.name: ServerTls(host.tls) for host in settings.hosts}
        self.controls = {host.name: self._control(host) for host in settings.hosts}
        self.health = Health(
            self.cluster,
            self.controls,
            Thresholds(watching.interval, watching.retry_after),
            self._vet if self._signed else None,
            Names(),
        )
        # Hosts that must not be used, and why.
        self._bypassed: dict[str, list[Finding]] = {}
        self._started = False
        self._alarmed: set[Finding] = set()
        routing = settings.routing
        intents = IntentCache(FunctionCatalog.builtin(routing.safe_functions), routing.max_parse_bytes)
        self.database = Database(name, self.cluster, intents, _unfinished(), access, self.stats)
        self.database.signed = self._signed
        self.database.token_ttl = config.identity.token_ttl
        self.database.session_mode = settings.pool_mode == "session"
        self.database.max_parse_bytes = routing.max_parse_bytes
        self.database.routing = routing.enabled
        self.database.lazy_begin = routing.lazy_begin
        self.database.read_your_writes = routing.read_your_writes
        self.database.retries_refused_reads = routing.retry_readonly_errors
        self._keeping = Keeping(self.database, self.cluster)
        self._take_over(settings)
        for host in self.cluster.hosts:
            for pool_name, pool in settings.pools.items():
                self._add_pool(host, pool_name, pool, config.identity.isolation == "strict")
        self.keys: KeyStore
        if config.auth.keys == "file":
            self.keys = FileKeyStore(config.auth.keys_file)
        else:
            reading = KeyReading(self.cluster, self.controls, self.health.alarm)
            self.keys = KeyStore(reading.fetch, config.auth.cache_ttl, time.monotonic)
            reading.knows = self.keys.knows
        self.watch_slow(config.access_log.slow_query)
        self.access_table = AccessTable(self._primary_control)
        self._logs_to_table = config.access_log.sinks.count("table") > 0
        self._functions: frozenset[tuple[str, str, str]] = frozenset()
        self._listens = config.auth.keys == "database"
        self._signing = Signing(self.database, self.controls)
        self._tasks: list[asyncio.Task[Any]] = []

    # -- life

    async def start(self) -> None:
        """Find out who is who, read functions and signing key, and keep all that current.

        Raises BypassError where a pool's login could pass by row-level security.
        """
        await self.health.probe()
        if self._bypassed:
            raise BypassError(self._bypassed)
        self._started = True
        kept = [(self._refresh_functions, _REFRESH_FUNCTIONS), (self._refresh_signer, _REFRESH_SIGNER)]
        if self._listens:
            kept.append((self._write_usage, _WRITE_USAGE))
        if self._logs_to_table:
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
            spawn(self._hear_writes(), f"{self.name}: writes elsewhere"),
            *(
                spawn(self._keep(refresh, interval), f"{self.name}: {refresh.__name__}")
                for refresh, interval in kept
            ),
        ]
        if self._listens:
            self._tasks.append(spawn(self._listen(), f"{self.name}: key changes"))

    def reload(self, settings: model.Database) -> bool:
        """Take over limits and timeouts; returns False if something else changed too, which needs a restart.

        Certificates are read again, for connections to come.
        """
        for host, tls in self._tls.items():
            try:
                tls.reload()
            except TlsError as error:
                log.error("host %s keeps its certificates: %s", host, error)
        self._take_over(settings)
        for pool in self.pools():
            wanted = settings.pools.get(pool.name)
            if wanted is not None:
                pool.limits = _limits(wanted, pool.limits.strict)
        fixed: dict[str, Any] = {
            "timeouts": True,
            "pools": True,
            "pool_defaults": True,
            "health": {"failover_wait", "failover_attempts"},
            "cache": True,
        }
        same = settings.model_dump(exclude=fixed) == self._settings.model_dump(exclude=fixed)
        logins = {name: (pool.user, pool.password) for name, pool in settings.pools.items()}
        return same and logins == {
            name: (pool.user, pool.password) for name, pool in self._settings.pools.items()
        }

    def _take_over(self, settings: model.Database) -> None:
        """Go by these timeouts from now on."""
        self.query_timeout = settings.timeouts.query
        self.idle_in_transaction = settings.timeouts.idle_in_transaction
        self.client_idle = settings.timeouts.client_idle
        self.database.failover_wait = settings.health.failover_wait
        self.database.failover_attempts = settings.health.failover_attempts
        self._keeping.take_over(settings)

    def watch_slow(self, seconds: float) -> None:
        """Tell the log of statements that take so long; 0 for none."""
        self.database.slow_us = int(seconds * 1e6) if seconds > 0.0 else NEVER

    async def stop(self) -> None:
        """End the tasks and close every server connection that is idle."""
        await stop(*self._tasks)
        self.health.stop()
        if self._listens:
            with contextlib.suppress(ClientError, TimeoutError):
                async with asyncio.timeout(_LAST_USAGE):
                    await self._write_usage()
        for pool in self.pools():
            pool.drain()

    async def close_control(self) -> None:
        """Close the control connections, which the access log needs to the end."""
        for control in self.controls.values():
            await control.close()

    def pools(self) -> list[Pool]:
        """Return all pools of all hosts."""
        return [pool for host in self.cluster.hosts for pool in host.pools.values()]

    @property
    def settings(self) -> model.Database:
        """Return what the configuration said at the start: of what a reload takes over, objects know more."""
        return self._settings

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
            catalog = FunctionCatalog.from_rows(functions, self._settings.routing.safe_functions)
            self.database.intents.set_catalog(catalog)

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

    # -- wiring

    def _control(self, host: model.Host) -> Control:
        settings = self._settings
        login = settings.control or settings.pools["primary"]
        return Control(
            host.host,
            host.port,
            settings.database,
            login.user,
            login.password.get_secret_value(),
            settings.pool_defaults.connect_timeout,
            self._tls[host.name],
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
        limits = _limits(settings, strict)
        pool = Pool(name, host.name, limits, pool_part(name, host.name))
        login = Login(
            host.address,
            host.port,
            self._settings.database,
            settings.user,
            settings.password.get_secret_value(),
            name == "readonly",
            settings.connect_timeout,
            self._tls[host.name],
        )

        def start_opening(wanting: Pool) -> None:
            spawn(self._open(wanting, login), f"connect {login.address}")

        pool.open = start_opening
        host.pools[name] = pool

    def _closed(self, pool: Pool) -> Callable[[Server], None]:
        """Return what is told that a connection of `pool` has ended; the monitor learns of one that ended by itself."""

        def closed(server: Server) -> None:
            if server.broke:
                self.health.alarm()
            pool.closed(server)

        return closed

    async def _open(self, pool: Pool, login: Login) -> None:
        await _after_failures(pool)
        started = time.monotonic()
        try:
            server = await connect(login, self._closed(pool))
        except ClientError as error:
            if pool.failures_in_a_row == 0:
                log.warning("pool %s on %s: %s", pool.name, pool.host, error.extra)
            pool.open_failed(error)
            if pool.failing:
                self.health.alarm()
            return
        now = time.monotonic()
        pool.stats.connect_time.observe(int((now - started) * 1e6))
        pool.opened(server, now)


async def _after_failures(pool: Pool) -> None:
    """Wait where the last attempt to open a connection failed: a host that refuses is asked once a second.

    Not longer than until its host has answered otherwise.
    """
    until = time.monotonic() + _RETRY
    while pool.failures_in_a_row and time.monotonic() < until:
        await asyncio.sleep(_MAINTENANCE)


def _limits(settings: model.Pool, strict: bool) -> PoolLimits:
    return PoolLimits(
        settings.min,
        settings.max,
        settings.acquire_timeout,
        settings.idle_timeout,
        settings.max_lifetime,
        settings.max_uses,
        strict,
    )


def _unfinished() -> Intent:
    """Return what stands for a unit whose end has not come: it may yet write."""
    return IntentCache(FunctionCatalog.builtin(), 1).lookup(b"-- the rest of an unfinished unit")
