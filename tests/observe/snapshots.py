"""The facts of one moment, made up: each family of metrics has a sample."""

from __future__ import annotations

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
from proxy.observe.stats import PoolStats, ProxyStats


def snapshot() -> Snapshot:
    """Return one in which each family of metrics has a sample."""
    proxy = ProxyStats()
    proxy.connections = 7
    proxy.logins = 5
    proxy.logins_refused.add("expired")
    proxy.denials.add("RATE_LIMIT_EXCEEDED")
    proxy.loop_delay.observe(300)
    pool = PoolStats()
    pool.statement("read", 50, 400, 100, 2000, b"")
    pool.statement("read", 50, 1_500_000, 100, 0, b"57014")
    pool.connect_time.observe(9_000)
    pool.pins.add("listen")
    pool.retries.add("25006")
    pool.assignments, pool.preludes, pool.claims = 20, 8, 6

    return Snapshot(
        version="1.2.3",
        compiled=True,
        ready=True,
        draining=False,
        clients=3,
        max_clients=5000,
        proxy=proxy,
        pools=[
            PoolSnapshot("app", "readonly", "replica1", 1, 5, 2, 1, 4, pool, pinned=1, parses=3, spared=9),
            PoolSnapshot("app", "primary", 'ma"in\n', 2, 10, 0, 2, 0, PoolStats()),
        ],
        hosts=[
            HostSnapshot("app", "main", "primary", True, response_time=0.001),
            HostSnapshot("app", "replica1", "replica", False, "open", lag=2.5, error="refused"),
        ],
        parse_cache=ParseCacheSnapshot(
            hits=90, shape_hits=5, fingerprint_hits=3, misses=2, entries=9, bytes=4096
        ),
        stranded={"app": 2},
        prepared_cache=[CacheSnapshot("app", hits=30, misses=4, entries=3)],
        key_cache=[CacheSnapshot("app", hits=11, misses=2, entries=1)],
        result_cache=[ResultCacheSnapshot("app", 50, 5, 20, 3, 17, 2, 1, 4, 12, 9000, 67108864)],
        access_log=[SinkSnapshot("table", written=41, dropped=1)],
        spool=SpoolSnapshot(records=1000, bytes=250_000, segments=2, dropped=7),
    )
