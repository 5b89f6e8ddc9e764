"""One configured database at work: what it consists of, how it starts, changes and stops, and what is kept current.

What sessions need on the path of a query stands in Database.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from proxy import config as model
from proxy.auth.keystore import FileKeyStore, KeyStore
from proxy.config.changes import DatabaseChanges
from proxy.errors import ClientError, NoPrimary, UpstreamUnavailable
from proxy.observe.record import AccessBuffer
from proxy.observe.slow import NEVER
from proxy.observe.stats import ProxyStats
from proxy.query.cache import IntentCache
from proxy.query.functions import FunctionCatalog
from proxy.query.intent import Intent
from proxy.session.database import Database
from proxy.session.functions import Functions
from proxy.session.keeping import Keeping
from proxy.session.key_reading import KeyReading
from proxy.session.listening import Listening
from proxy.session.pools import Pools, login_for
from proxy.session.reload import Preparation, Ready
from proxy.session.rights import Rights
from proxy.session.signing import Signing
from proxy.session.usage import write_usage
from proxy.tasks import spawn, stop
from proxy.transport.way import Way
from proxy.tunnel import Tunnel, way_to
from proxy.upstream.access_table import AccessTable
from proxy.upstream.breaker import Breaker
from proxy.upstream.cluster import LEAST_CONNECTIONS, RANDOM, ROUND_ROBIN, Cluster, Host
from proxy.upstream.control import Control
from proxy.upstream.controls import Controls
from proxy.upstream.health import Health, Thresholds
from proxy.upstream.names import Names
from proxy.upstream.pool import Pool

log = logging.getLogger(__name__)

_BALANCE = {"round_robin": ROUND_ROBIN, "least_connections": LEAST_CONNECTIONS, "random": RANDOM}

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
        is_first: bool = True,
    ) -> None:
        """Begin with nothing connected; of several workers the first does what has to be done once."""
        self.name = name
        # What is in force of the configuration.
        self.settings = settings
        self._signed = config.identity.mode == "signed"
        watching = settings.health
        self.cluster = Cluster(
            name,
            [_host(host, watching) for host in settings.hosts],
            _BALANCE[settings.pools["readonly"].balance],
            settings.health.max_lag,
        )
        self._ways = {host.name: way_to(host) for host in settings.hosts}
        self._controls = Controls(
            self.cluster, {name: _control(settings, way) for name, way in self._ways.items()}
        )
        self._rights = Rights(name, settings, self._controls)
        self.health = Health(
            self.cluster,
            self._controls.by_host,
            Thresholds(watching.interval, watching.retry_after),
            self._rights.vet if self._signed else None,
            Names(),
        )
        routing = settings.routing
        intents = IntentCache(FunctionCatalog.builtin(routing.safe_functions), routing.max_parse_bytes)
        self._functions = Functions(intents, self._controls, routing)
        self.database = Database(name, self.cluster, intents, _unfinished(), access, stats)
        self.database.signed = self._signed
        self.database.token_ttl = config.identity.token_ttl
        self.database.session_mode = settings.pool_mode == "session"
        self.keeping = Keeping(self.database)
        self._take_over(settings)
        self.pools = Pools(self.cluster, self._ways, self.health.alarm, settings, _is_strict(config))
        self.keys = self._key_store(config.auth)
        self._watch_slow(config.access_log.slow_query)
        self.access_table = AccessTable(self._controls.primary)
        self._makes_partitions = is_first and config.access_log.sinks.count("table") > 0
        self._has_keys = config.auth.keys == "database"
        self._signing = Signing(self.database, self._controls.by_host)
        self._listening = Listening(
            name, self._controls.primary, self.keys if self._has_keys else None, self.keeping
        )
        self._tasks: list[asyncio.Task[Any]] = []
        self.cluster.primary_changed = self._listening.start_again

    def _key_store(self, auth: model.Auth) -> KeyStore:
        if auth.keys == "file":
            return FileKeyStore(auth.keys_file)
        reading = KeyReading(self.cluster, self._controls.by_host, self.health.alarm)
        keys = KeyStore(reading.fetch, auth.cache_ttl, time.monotonic)
        reading.knows = keys.knows
        return keys

    # -- life

    async def start(self) -> None:
        """Find out who is who, read functions and signing key, and keep all that current.

        Raises BypassError where a pool's login could pass by row-level security.
        """
        slow = any(way.slow_to_open for way in self._ways.values())
        await self.health.probe(self.settings.pool_defaults.connect_timeout if slow else 0.0)
        self._rights.start()
        kept = [
            ("functions", self._functions.refresh, _REFRESH_FUNCTIONS),
            ("signing key", self._refresh_signer, _REFRESH_SIGNER),
        ]
        if self._has_keys:
            kept.append(("usage", self._write_usage, _WRITE_USAGE))
        if self._makes_partitions:
            kept.append(("partitions", self._ensure_partitions, _REFRESH_PARTITIONS))
        if self._signed:
            kept.append(("rights", self._rights.watch, _WATCH_RIGHTS))
        for _, refresh, _ in kept:
            try:
                await refresh()
            except (NoPrimary, UpstreamUnavailable) as error:
                log.error("database %s: %s (%s)", self.name, error.message, error.extra)
        self._maintain(time.monotonic())
        self._tasks = [
            spawn(self.health.run(), f"{self.name}: health"),
            spawn(self._maintenance(), f"{self.name}: pools"),
            *(
                spawn(self._keep(refresh, interval), f"{self.name}: {what}")
                for what, refresh, interval in kept
            ),
        ]
        self._listening.start()

    # -- a reload

    async def prepare(self, settings: model.Database, changes: DatabaseChanges) -> Ready:
        """Do all that can fail before these settings are in force; returns what `switch` takes, or `drop` undoes.

        Raises SluiceError, and nothing has changed then.
        """
        ready = Ready(settings, changes)
        preparation = Preparation(self.name, self.cluster, self._controls.by_host, self._ways, self._signed)
        try:
            await preparation.prepare(
                ready,
                lambda host: _host(host, settings.health),
                lambda way: _control(settings, way),
                lambda pool, way: login_for(pool, settings, way),
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
        before, self.settings = self.settings, ready.settings
        changes, settings, cluster = ready.changes, ready.settings, self.cluster
        for name, contexts in ready.contexts.items():
            self._ways[name].renew(contexts)
        gone = self._exchange_hosts(ready)
        leaving = self.pools.change(settings, changes, _is_strict(config), gone)
        self._take_over(settings, before)
        if config.identity.mode == "signed":
            self._signing.sign_for(config.identity.token_ttl)
        self.keys.read_each(config.auth.cache_ttl)
        self._watch_slow(config.access_log.slow_query)
        cluster.roles_changed()
        self.pools.let_go(leaving, now, now + config.listen.drain_timeout)
        cluster.resume(now)
        self._maintain(now)
        if changes.hosts_added or changes.hosts_removed or changes.control:
            self.health.alarm()
            self._listening.start_again()

    def _exchange_hosts(self, ready: Ready) -> list[Pool]:
        """Let hosts go and come; returns the pools of those that go."""
        gone = [host for host in self.cluster.hosts if host.name in ready.changes.hosts_removed]
        for host in gone:
            self.health.forget(host)
            self._controls.drop(host.name)
            self._rights.forget(host.name)
            del self._ways[host.name]
        for name, control in ready.controls.items():
            self._controls.put(name, control)
        for name, newcomer in ready.newcomers.items():
            self._ways[name] = newcomer.way
            self._controls.put(name, newcomer.control)
        hosts = {host.name: host for host in self.cluster.hosts if host not in gone}
        hosts |= {name: newcomer.host for name, newcomer in ready.newcomers.items()}
        # Another list: whoever goes through the old one waits for answers meanwhile.
        self.cluster.hosts = [hosts[host.name] for host in ready.settings.hosts]
        return [pool for host in gone for pool in host.pools.values()]

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
        self._rights.settings = settings
        self.keeping.take_over(settings)
        if before is None:
            return
        if before.health != health:
            self.health.thresholds = Thresholds(health.interval, health.retry_after)
            for host in self.cluster.hosts:
                host.breaker.failures_to_open = health.failures_to_open
                host.breaker.retry_after = health.retry_after
        if before.routing != routing:
            self._functions.take_over(routing)

    def _watch_slow(self, seconds: float) -> None:
        """Tell the log of statements that take so long; 0 for none."""
        self.database.slow_us = int(seconds * 1e6) if seconds > 0.0 else NEVER

    async def stop(self) -> None:
        """End the tasks and close every server connection that is idle."""
        await stop(*self._tasks)
        self.health.stop()
        await self._listening.stop()
        if self._has_keys:
            with contextlib.suppress(ClientError, TimeoutError):
                async with asyncio.timeout(_LAST_USAGE):
                    await self._write_usage()
        self.pools.drain()

    async def close_control(self) -> None:
        """Close the control connections, which the access log needs to the end."""
        await self._controls.close()

    def is_tunnelled(self, host: str) -> bool:
        """Tell whether the host of this name is reached through a Cloudflare tunnel."""
        return isinstance(self._ways.get(host), Tunnel)

    def ready(self) -> bool:
        """Tell whether the database can be served."""
        serves = self.cluster.primary is not None or bool(self.cluster.replicas)
        return serves and (not self._signed or self.database.signer is not None)

    # -- what is kept current

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

    async def _refresh_signer(self) -> None:
        self.database.server_offset = self.health.server_offset
        self.database.wall_offset = time.time() - time.monotonic()
        if self._signed:
            await self._signing.refresh()

    async def _write_usage(self) -> None:
        """Write back what keys were used for; what is under way counts next time."""
        await write_usage(self.database.usage, self._controls.primary)

    async def _ensure_partitions(self) -> None:
        """Make the access log's partitions of the next days: a row without one would be refused."""
        async with self._controls.primary().connection() as connection:
            await connection.fetch(_ENSURE_PARTITIONS)

    async def _maintenance(self) -> None:
        while True:
            await asyncio.sleep(_MAINTENANCE)
            self._maintain(time.monotonic())

    def _maintain(self, now: float) -> None:
        self.keeping.tick(now)
        first = self.cluster.stranded.first
        if first is not None and now - first.stranded_since >= self.database.failover_wait:
            # Whoever has waited long enough is told so, the others wait on.
            self.cluster.resume(now)
        self.pools.maintain(now)


def _host(host: model.Host, watching: model.Health) -> Host:
    return Host(
        host.name,
        host.host,
        host.port,
        host.role,
        Breaker(watching.failures_to_open, watching.retry_after),
    )


def _control(settings: model.Database, way: Way) -> Control:
    login = settings.control or settings.pools["primary"]
    return Control(
        way,
        settings.database,
        login.user,
        login.password.get_secret_value(),
        settings.pool_defaults.connect_timeout,
    )


def _is_strict(config: model.Config) -> bool:
    """Tell whether a connection may never serve two users."""
    return config.identity.isolation == "strict"


def _unfinished() -> Intent:
    """Return what stands for a unit whose end has not come: it may yet write."""
    return IntentCache(FunctionCatalog.builtin(), 1).lookup(b"-- the rest of an unfinished unit")
