"""Reads the facts that metrics and health are made of off the objects at work."""

from __future__ import annotations

from collections.abc import Mapping

import proxy
from proxy.observe.access_log import AccessLog, Sink
from proxy.observe.snapshot import (
    CacheSnapshot,
    HostSnapshot,
    ParseCacheSnapshot,
    PoolSnapshot,
    ResultCacheSnapshot,
    SinkSnapshot,
    Snapshot,
    SpoolSnapshot,
)
from proxy.session.gate import Gate
from proxy.session.results import Results
from proxy.session.served import Served
from proxy.upstream.cluster import Host
from proxy.upstream.pool import Pool


def take(databases: Mapping[str, Served], gate: Gate, access_log: AccessLog, ready: bool) -> Snapshot:
    """Return the facts of this moment."""
    return Snapshot(
        version=proxy.__version__,
        compiled=proxy.compiled(),
        ready=ready,
        draining=gate.draining,
        clients=len(gate.sessions),
        max_clients=gate.max_clients,
        proxy=gate.stats,
        pools=[_pool(name, pool) for name, served in databases.items() for pool in served.pools.of_hosts()],
        hosts=[
            _host(name, served, host) for name, served in databases.items() for host in served.cluster.hosts
        ],
        stranded={
            name: served.cluster.stranded.length + served.cluster.parked.length
            for name, served in databases.items()
        },
        parse_cache=_parse_cache(databases),
        prepared_cache=[
            CacheSnapshot(name, statements.shared, statements.made, statements.entries())
            for name, served in databases.items()
            for statements in (served.database.statements,)
        ],
        key_cache=[
            CacheSnapshot(name, served.keys.hits, served.keys.misses, served.keys.entries())
            for name, served in databases.items()
        ],
        result_cache=[
            _results(name, served.keeping.results)
            for name, served in databases.items()
            if served.database.results is not None
        ],
        access_log=[_sink(sink) for sink in access_log.sinks],
        spool=_spool(access_log),
        permits_up=gate.permits is None or gate.permits.up,
        permit_failures=gate.permits.failures if gate.permits is not None else 0,
    )


def _pool(database: str, pool: Pool) -> PoolSnapshot:
    return PoolSnapshot(
        database=database,
        pool=pool.name,
        host=pool.host,
        minimum=pool.limits.minimum,
        maximum=pool.limits.maximum,
        active=len(pool.servers) - pool.idle_count - len(pool.errands),
        idle=pool.idle_count,
        waiting=pool.waiters.length,
        stats=pool.stats,
        pinned=pool.pinned,
        busy=pool.opening + len(pool.errands),
        parses=pool.parses(),
        spared=pool.spared(),
    )


def _host(database: str, served: Served, host: Host) -> HostSnapshot:
    role = "replica" if host.in_recovery else "primary" if host is served.cluster.primary else "unknown"
    return HostSnapshot(
        database=database,
        host=host.name,
        role=role,
        connected=host.up,
        breaker=host.breaker.state,
        response_time=host.response_time if host.up else None,
        lag=host.lag if host.up and host.in_recovery else None,
        error=host.last_error,
        tunnelled=served.is_tunnelled(host.name),
    )


def _parse_cache(databases: Mapping[str, Served]) -> ParseCacheSnapshot:
    caches = [served.database.intents for served in databases.values()]
    return ParseCacheSnapshot(
        hits=sum(cache.hits for cache in caches),
        shape_hits=sum(cache.shape_hits for cache in caches),
        fingerprint_hits=sum(cache.fingerprint_hits for cache in caches),
        misses=sum(cache.misses for cache in caches),
        entries=sum(cache.entries() for cache in caches),
        bytes=sum(cache.held_bytes() for cache in caches),
    )


def _results(database: str, results: Results) -> ResultCacheSnapshot:
    return ResultCacheSnapshot(
        database=database,
        hits=results.hits,
        stale_hits=results.stale_hits,
        misses=results.misses,
        waits=results.waits,
        stores=results.stores,
        refusals=results.refusals,
        evictions=results.evictions,
        invalidations=results.invalidations,
        entries=len(results.entries),
        bytes=results.bytes,
        limit=results.max_bytes,
    )


def _sink(sink: Sink) -> SinkSnapshot:
    return SinkSnapshot(
        name=sink.name,
        written=sink.written,
        dropped=sink.dropped,
        refused=sink.refused,
        failures=sink.failures,
        waiting=sink.backlog.rows,
        waiting_bytes=sink.backlog.bytes,
        last_error=sink.last_error,
    )


def _spool(access_log: AccessLog) -> SpoolSnapshot:
    spool = access_log.spool
    if spool is None:
        return SpoolSnapshot()
    return SpoolSnapshot(spool.rows, spool.bytes, spool.segments, spool.unreadable)
