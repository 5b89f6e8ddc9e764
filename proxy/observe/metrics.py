"""Show a Snapshot to Prometheus.

A custom collector reads the plain counters at scrape time, so that metrics cost the path of a query nothing.
Names, units and suffixes follow "Metric and label naming" of Prometheus' documentation. Labels come from the
configuration, or from fixed lists: nothing that a client says becomes one.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from proxy.observe.snapshot import (
    BREAKER_STATES,
    ROLES,
    CacheSnapshot,
    HostSnapshot,
    ParseCacheSnapshot,
    PoolSnapshot,
    ResultCacheSnapshot,
    SinkSnapshot,
    Snapshot,
    SpoolSnapshot,
)
from proxy.observe.stats import BOUNDS_US, Histogram, ProxyStats

_LIMITS = [*(str(bound / 1_000_000) for bound in BOUNDS_US), "+Inf"]
# What ends a text in OpenMetrics' format.
_END = b"# EOF\n"
_POOL = ("database", "pool", "host")
_HOST = ("database", "host")


class Metrics:
    """Renders what `snapshot` tells, and what is known of the process, the platform and the collector."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(SnapshotCollector(snapshot))

    async def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the metrics and their content type, in the format that the header Accept asks for.

        All are read at once. Encoding them takes some 20 µs a sample, so it lets the event loop go on between
        two families.
        """
        encode, content_type = choose_encoder(accept)
        parts: list[bytes] = []
        for family in list(self._registry.collect()):
            parts.append(encode(_OneFamily(family)).removesuffix(_END))
            await asyncio.sleep(0)
        if content_type.startswith("application/openmetrics-text"):
            parts.append(_END)
        return b"".join(parts), content_type


class _OneFamily(Collector):
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


class SnapshotCollector(Collector):
    """Makes metric families of one Snapshot for each scrape."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Sequence[Metric]:
        """Return nothing: the families are known when they are collected."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        snapshot = self._snapshot()
        yield InfoMetricFamily(
            "pgsluice_build",
            "What is running.",
            value={
                "version": snapshot.version,
                "python": platform.python_version(),
                "compiled": "yes" if snapshot.compiled else "no",
            },
        )
        yield _gauge("ready", "1 while the proxy can serve.", float(snapshot.ready))
        yield _gauge("draining", "1 while the proxy is shutting down.", float(snapshot.draining))
        yield _gauge("clients", "Client connections.", snapshot.clients)
        yield _gauge("clients_limit", "Client connections that are allowed.", snapshot.max_clients)
        yield from _clients(snapshot.proxy)
        yield _gauge(
            "rate_limit_store_up",
            "1 while the store of rate limits answers, or there is none.",
            float(snapshot.permits_up),
        )
        yield _counter(
            "rate_limit_store_failures",
            "Questions to the store of rate limits that had no answer.",
            snapshot.permit_failures,
        )
        yield from _pool_sizes(snapshot.pools)
        yield from _pool_work(snapshot.pools)
        yield from _hosts(snapshot.hosts)
        stranded = GaugeMetricFamily(
            "pgsluice_stranded",
            "Sessions that wait for a host that can serve them, or for the end of a pause.",
            labels=("database",),
        )
        for name, number in snapshot.stranded.items():
            stranded.add_metric((name,), number)
        yield stranded
        yield from _parse_cache(snapshot.parse_cache)
        yield from _cache(
            "prepared_cache",
            "Named and unnamed statements by whether an equal one was made before",
            "Prepared statements that sessions can share.",
            snapshot.prepared_cache,
        )
        yield from _cache(
            "key_cache",
            "Keys by whether they were at hand or had to be read",
            "Keys that are at hand.",
            snapshot.key_cache,
        )
        yield from _result_cache(snapshot.result_cache)
        yield from _access_log(snapshot.access_log)
        yield from _spool(snapshot.spool)


def _clients(stats: ProxyStats) -> Iterator[Metric]:
    yield _counter("client_connections", "Client connections accepted.", stats.connections)
    yield _counter(
        "client_connections_refused",
        "Client connections turned away before a login, over a limit.",
        stats.connections_refused,
    )
    yield _counter("logins", "Logins accepted.", stats.logins)
    yield _tally("logins_refused", "Logins refused.", "reason", stats.logins_refused.counts)
    yield _tally("statements_denied", "Statements that the proxy refused.", "code", stats.denials.counts)
    yield _counter(
        "sessions_revoked", "Sessions closed because their key was revoked or expired.", stats.revocations
    )
    yield _counter("cancel_requests", "Cancel requests with the key of a session.", stats.cancels)
    yield _counter("cancel_requests_refused", "Cancel requests with a wrong key.", stats.cancels_refused)
    delay = HistogramMetricFamily(
        "pgsluice_event_loop_delay_seconds", "How late the event loop wakes timers."
    )
    delay.add_metric((), *_buckets(stats.loop_delay))
    yield delay


def _pool_sizes(pools: Sequence[PoolSnapshot]) -> Iterator[Metric]:
    connections = GaugeMetricFamily(
        "pgsluice_pool_connections",
        "Server connections: active ones serve a session, busy ones are being opened or cleaned.",
        labels=(*_POOL, "state"),
    )
    minimum = GaugeMetricFamily(
        "pgsluice_pool_connections_minimum", "Server connections that are kept.", labels=_POOL
    )
    limit = GaugeMetricFamily(
        "pgsluice_pool_connections_limit", "Server connections that are allowed.", labels=_POOL
    )
    pinned = GaugeMetricFamily(
        "pgsluice_pool_connections_pinned", "Active server connections that can't change hands.", labels=_POOL
    )
    waiting = GaugeMetricFamily(
        "pgsluice_pool_waiting", "Sessions that wait for a server connection.", labels=_POOL
    )
    for pool in pools:
        labels = (pool.database, pool.pool, pool.host)
        for state, number in (("active", pool.active), ("idle", pool.idle), ("busy", pool.busy)):
            connections.add_metric((*labels, state), number)
        minimum.add_metric(labels, pool.minimum)
        limit.add_metric(labels, pool.maximum)
        pinned.add_metric(labels, pool.pinned)
        waiting.add_metric(labels, pool.waiting)
    yield from (connections, minimum, limit, pinned, waiting)


def _pool_work(pools: Sequence[PoolSnapshot]) -> Iterator[Metric]:
    query_time = HistogramMetricFamily(
        "pgsluice_query_duration_seconds",
        "Time of statements on a server, from the first byte sent to the last received.",
        labels=(*_POOL, "intent"),
    )
    queue_time = HistogramMetricFamily(
        "pgsluice_queue_duration_seconds",
        "Time statements waited for a server connection.",
        labels=(*_POOL, "intent"),
    )
    connect_time = HistogramMetricFamily(
        "pgsluice_connect_duration_seconds", "Time it took to open a server connection.", labels=_POOL
    )
    errors = CounterMetricFamily(
        "pgsluice_errors",
        "Statements that failed on a server, by class of SQLSTATE.",
        labels=(*_POOL, "class"),
    )
    pins = CounterMetricFamily(
        "pgsluice_pins", "Sessions that were pinned to a server connection.", labels=(*_POOL, "reason")
    )
    retries = CounterMetricFamily(
        "pgsluice_retries",
        "Reads that were sent once more, by the SQLSTATE with which a server refused them; lost: it died.",
        labels=(*_POOL, "reason"),
    )
    for pool in pools:
        labels = (pool.database, pool.pool, pool.host)
        for name, number in pool.stats.retries.counts.items():
            retries.add_metric((*labels, name), number)
        for kind, histogram in pool.stats.query_time.items():
            # A pool sees two or three intents; a scrape that shows all six takes twice as long.
            if histogram.total():
                query_time.add_metric((*labels, kind), *_buckets(histogram))
                queue_time.add_metric((*labels, kind), *_buckets(pool.stats.queue_times[kind]))
        connect_time.add_metric(labels, *_buckets(pool.stats.connect_time))
        for name, number in pool.stats.errors.counts.items():
            errors.add_metric((*labels, name), number)
        for name, number in pool.stats.pins.counts.items():
            pins.add_metric((*labels, name), number)
    yield from (query_time, queue_time, connect_time, errors, pins, retries)
    yield from _pool_counters(pools)


def _pool_counters(pools: Sequence[PoolSnapshot]) -> Iterator[Metric]:
    families = [
        CounterMetricFamily(f"pgsluice_{name}", documentation, labels=_POOL)
        for name, documentation in (
            ("received_bytes", "Bytes of statements from clients."),
            ("sent_bytes", "Bytes of results to clients."),
            ("connect_failures", "Server connections that failed to open."),
            ("acquire_timeouts", "Sessions that waited in vain for a server connection."),
            ("cancels", "Cancel requests that were passed to a server."),
            ("resets", "Server connections cleaned for another session."),
            ("assignments", "Times that a session was lent a server connection."),
            (
                "preludes",
                "Units that had an identity or settings set in front of them; others found theirs set.",
            ),
            ("identity_claims", "Signed identities that were set on a server connection."),
            ("server_parses", "Named statements that servers were sent to parse."),
            (
                "server_parses_spared",
                "Parses that were not sent, as the server connection held the statement already.",
            ),
        )
    ]
    for pool in pools:
        stats = pool.stats
        numbers: tuple[int, ...] = (
            stats.bytes_in,
            stats.bytes_out,
            stats.connect_failures,
            stats.acquire_timeouts,
            stats.cancels,
            stats.resets,
            stats.assignments,
            stats.preludes,
            stats.claims,
            pool.parses,
            pool.spared,
        )
        for family, number in zip(families, numbers, strict=True):
            family.add_metric((pool.database, pool.pool, pool.host), number)
    yield from families


def _hosts(hosts: Sequence[HostSnapshot]) -> Iterator[Metric]:
    up = GaugeMetricFamily("pgsluice_host_up", "1 where the last health check passed.", labels=_HOST)
    primary = GaugeMetricFamily("pgsluice_host_primary", "1 where the host takes writes.", labels=_HOST)
    roles = GaugeMetricFamily(
        "pgsluice_host_role", "1 for what the host was at its last answer.", labels=(*_HOST, "role")
    )
    breaker = GaugeMetricFamily(
        "pgsluice_host_breaker_open", "1 where the host gets no statements, after failures.", labels=_HOST
    )
    states = GaugeMetricFamily(
        "pgsluice_host_breaker_state",
        "1 for the state that the host's circuit breaker is in.",
        labels=(*_HOST, "state"),
    )
    response = GaugeMetricFamily(
        "pgsluice_host_response_time_seconds", "Time that the last health check took.", labels=_HOST
    )
    lag = GaugeMetricFamily(
        "pgsluice_host_lag_seconds", "Age of the oldest write that is not replayed.", labels=_HOST
    )
    for host in hosts:
        labels = (host.database, host.host)
        up.add_metric(labels, float(host.connected))
        primary.add_metric(labels, float(host.role == "primary"))
        for role in ROLES:
            roles.add_metric((*labels, role), float(host.role == role))
        breaker.add_metric(labels, float(host.breaker != "closed"))
        for state in BREAKER_STATES:
            states.add_metric((*labels, state), float(host.breaker == state))
        if host.response_time is not None:
            response.add_metric(labels, host.response_time)
        if host.lag is not None:
            lag.add_metric(labels, host.lag)
    yield from (up, primary, roles, breaker, states, response, lag)


def _parse_cache(cache: ParseCacheSnapshot) -> Iterator[Metric]:
    lookups = {
        "text": cache.hits,
        "shape": cache.shape_hits,
        "fingerprint": cache.fingerprint_hits,
        "miss": cache.misses,
    }
    yield _tally("parse_cache_lookups", "Statements by what decided their intent.", "result", lookups)
    yield _gauge("parse_cache_entries", "Entries in the cache of intents.", cache.entries)
    yield _gauge("parse_cache_bytes", "Memory of the cache of intents.", cache.bytes)


def _cache(name: str, lookups: str, entries: str, caches: Sequence[CacheSnapshot]) -> Iterator[Metric]:
    found = CounterMetricFamily(f"pgsluice_{name}_lookups", f"{lookups}.", labels=("database", "result"))
    held = GaugeMetricFamily(f"pgsluice_{name}_entries", entries, labels=("database",))
    for cache in caches:
        found.add_metric((cache.database, "hit"), cache.hits)
        found.add_metric((cache.database, "miss"), cache.misses)
        held.add_metric((cache.database,), cache.entries)
    yield from (found, held)


def _result_cache(caches: Sequence[ResultCacheSnapshot]) -> Iterator[Metric]:
    lookups = CounterMetricFamily(
        "pgsluice_result_cache_lookups",
        "Reads whose result may be kept: hit, stale_hit: a kept one was given; miss: a server or another was asked.",
        labels=("database", "result"),
    )
    counters = [
        CounterMetricFamily(f"pgsluice_result_cache_{name}", documentation, labels=("database",))
        for name, documentation in (
            ("waits", "Misses that waited for somebody else's answer."),
            ("stores", "Results that were kept."),
            ("refusals", "Answers that were to be kept and could not be."),
            ("evictions", "Results dropped for want of room."),
            ("invalidations", "Results dropped because of writes, notifications and flushes."),
        )
    ]
    gauges = [
        GaugeMetricFamily(f"pgsluice_result_cache_{name}", documentation, labels=("database",))
        for name, documentation in (
            ("entries", "Results that are kept."),
            ("bytes", "Memory of the results that are kept."),
            ("limit_bytes", "Memory that they may take."),
        )
    ]
    for cache in caches:
        found = (
            ("hit", cache.hits - cache.stale_hits),
            ("stale_hit", cache.stale_hits),
            ("miss", cache.misses),
        )
        for result, number in found:
            lookups.add_metric((cache.database, result), number)
        counts = (cache.waits, cache.stores, cache.refusals, cache.evictions, cache.invalidations)
        for counter, number in zip(counters, counts, strict=True):
            counter.add_metric((cache.database,), number)
        for gauge, number in zip(gauges, (cache.entries, cache.bytes, cache.limit), strict=True):
            gauge.add_metric((cache.database,), number)
    yield from (lookups, *counters, *gauges)


def _access_log(sinks: Sequence[SinkSnapshot]) -> Iterator[Metric]:
    records = CounterMetricFamily(
        "pgsluice_access_log_records",
        "Access records: written, dropped for want of room, refused by the destination.",
        labels=("sink", "result"),
    )
    failures = CounterMetricFamily(
        "pgsluice_access_log_failures", "Deliveries that failed; most are tried again.", labels=("sink",)
    )
    waiting = GaugeMetricFamily(
        "pgsluice_access_log_backlog_records", "Access records that wait.", labels=("sink",)
    )
    size = GaugeMetricFamily(
        "pgsluice_access_log_backlog_bytes", "Size of the access records that wait.", labels=("sink",)
    )
    for sink in sinks:
        for result, number in (
            ("written", sink.written),
            ("dropped", sink.dropped),
            ("refused", sink.refused),
        ):
            records.add_metric((sink.name, result), number)
        failures.add_metric((sink.name,), sink.failures)
        waiting.add_metric((sink.name,), sink.waiting)
        size.add_metric((sink.name,), sink.waiting_bytes)
    yield from (records, failures, waiting, size)


def _spool(spool: SpoolSnapshot) -> Iterator[Metric]:
    yield _gauge("access_log_spool_records", "Access records that wait in the spool.", spool.records)
    yield _gauge("access_log_spool_bytes", "Size of the access records that wait in the spool.", spool.bytes)
    yield _gauge("access_log_spool_segments", "Files of the spool.", spool.segments)
    yield _counter(
        "access_log_spool_dropped_records",
        "Access records of the spool that were damaged on disk, and so lost.",
        spool.dropped,
    )


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"pgsluice_{name}", documentation, value=value)


def _counter(name: str, documentation: str, value: int) -> Metric:
    return CounterMetricFamily(f"pgsluice_{name}", documentation, value=value)


def _tally(name: str, documentation: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"pgsluice_{name}", documentation, labels=(label,))
    for value, number in counts.items():
        family.add_metric((value,), number)
    return family


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Return the buckets, each with all that is below it, and the sum in seconds."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for limit, number in zip(_LIMITS, histogram.counts, strict=True):
        total += number
        buckets.append((limit, total))
    return buckets, histogram.sum_us / 1_000_000
