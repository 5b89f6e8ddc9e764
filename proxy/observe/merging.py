"""The facts of several processes as one: each sends its Snapshot as plain values, and one of them adds them up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final, TypeVar

from proxy.observe.snapshot import (
    BREAKER_STATES,
    CacheSnapshot,
    HostSnapshot,
    ParseCacheSnapshot,
    PoolSnapshot,
    ResultCacheSnapshot,
    SinkSnapshot,
    Snapshot,
    SpoolSnapshot,
)
from proxy.observe.stats import KINDS, Histogram, PoolStats, ProxyStats, Tally

T = TypeVar("T")

POOL_COUNTERS: Final = (
    "connect_failures",
    "bytes_in",
    "bytes_out",
    "cancels",
    "resets",
    "acquire_timeouts",
    "assignments",
    "transactions",
    "transaction_us",
    "server_parses",
    "server_spared",
    "preludes",
    "claims",
)
POOL_TALLIES: Final = ("errors", "pins", "retries")
PROXY_COUNTERS: Final = (
    "connections",
    "connections_refused",
    "logins",
    "revocations",
    "cancels",
    "cancels_refused",
)
PROXY_TALLIES: Final = ("logins_refused", "denials")


def to_plain(snapshot: Snapshot) -> dict[str, Any]:
    """Return `snapshot` as JSON can hold it."""
    return {
        "version": snapshot.version,
        "compiled": snapshot.compiled,
        "ready": snapshot.ready,
        "draining": snapshot.draining,
        "clients": snapshot.clients,
        "max_clients": snapshot.max_clients,
        "proxy": _plain_stats(snapshot.proxy, PROXY_COUNTERS, PROXY_TALLIES, ("loop_delay",)),
        "pools": [_plain_pool(pool) for pool in snapshot.pools],
        "hosts": [asdict(host) for host in snapshot.hosts],
        "stranded": dict(snapshot.stranded),
        "parse_cache": asdict(snapshot.parse_cache),
        "prepared_cache": [asdict(cache) for cache in snapshot.prepared_cache],
        "key_cache": [asdict(cache) for cache in snapshot.key_cache],
        "result_cache": [asdict(cache) for cache in snapshot.result_cache],
        "access_log": [asdict(sink) for sink in snapshot.access_log],
        "spool": asdict(snapshot.spool),
        "permits_up": snapshot.permits_up,
        "permit_failures": snapshot.permit_failures,
    }


def from_plain(given: Mapping[str, Any]) -> Snapshot:
    """Return the Snapshot that `to_plain` has made; raises KeyError, TypeError or ValueError for anything else."""
    proxy = ProxyStats()
    _fill(proxy, given["proxy"], PROXY_COUNTERS, PROXY_TALLIES, ("loop_delay",))
    return Snapshot(
        version=given["version"],
        compiled=given["compiled"],
        ready=given["ready"],
        draining=given["draining"],
        clients=given["clients"],
        max_clients=given["max_clients"],
        proxy=proxy,
        pools=[_pool(pool) for pool in given["pools"]],
        hosts=[HostSnapshot(**host) for host in given["hosts"]],
        stranded=given["stranded"],
        parse_cache=ParseCacheSnapshot(**given["parse_cache"]),
        prepared_cache=[CacheSnapshot(**cache) for cache in given["prepared_cache"]],
        key_cache=[CacheSnapshot(**cache) for cache in given["key_cache"]],
        result_cache=[ResultCacheSnapshot(**cache) for cache in given["result_cache"]],
        access_log=[SinkSnapshot(**sink) for sink in given["access_log"]],
        spool=SpoolSnapshot(**given["spool"]),
        permits_up=given["permits_up"],
        permit_failures=given["permit_failures"],
    )


def merged(snapshots: Sequence[Snapshot]) -> Snapshot:
    """Return one Snapshot of all of them, whose first is that of who asks.

    Numbers are added up. Of a host the worst counts that any of them sees, so that an alert finds it.
    """
    first = snapshots[0]
    if len(snapshots) == 1:
        return first
    proxy = ProxyStats()
    for each in snapshots:
        _add(proxy, each.proxy, PROXY_COUNTERS, PROXY_TALLIES, ("loop_delay",))
    stranded: dict[str, int] = {}
    for each in snapshots:
        for name, number in each.stranded.items():
            stranded[name] = stranded.get(name, 0) + number
    return replace(
        first,
        ready=all(each.ready for each in snapshots),
        draining=any(each.draining for each in snapshots),
        clients=sum(each.clients for each in snapshots),
        max_clients=sum(each.max_clients for each in snapshots),
        proxy=proxy,
        pools=_grouped(
            (pool for each in snapshots for pool in each.pools),
            lambda pool: (pool.database, pool.pool, pool.host),
            _merged_pools,
        ),
        hosts=_grouped(
            (host for each in snapshots for host in each.hosts),
            lambda host: (host.database, host.host),
            _merged_hosts,
        ),
        stranded=stranded,
        parse_cache=_summed([each.parse_cache for each in snapshots]),
        prepared_cache=_caches(cache for each in snapshots for cache in each.prepared_cache),
        key_cache=_caches(cache for each in snapshots for cache in each.key_cache),
        result_cache=_grouped(
            (cache for each in snapshots for cache in each.result_cache),
            lambda cache: cache.database,
            _summed,
        ),
        access_log=_grouped(
            (sink for each in snapshots for sink in each.access_log), lambda sink: sink.name, _merged_sinks
        ),
        spool=_summed([each.spool for each in snapshots]),
        permits_up=all(each.permits_up for each in snapshots),
        permit_failures=sum(each.permit_failures for each in snapshots),
    )


def ended(snapshot: Snapshot) -> Snapshot:
    """Return what is left of a process that has ended: what it has counted, and nothing that it had."""
    return replace(
        snapshot,
        ready=True,
        draining=False,
        clients=0,
        max_clients=0,
        pools=[
            replace(pool, minimum=0, maximum=0, active=0, idle=0, waiting=0, pinned=0, busy=0)
            for pool in snapshot.pools
        ],
        hosts=[],
        stranded={},
        parse_cache=replace(snapshot.parse_cache, entries=0, bytes=0),
        prepared_cache=[replace(cache, entries=0) for cache in snapshot.prepared_cache],
        key_cache=[replace(cache, entries=0) for cache in snapshot.key_cache],
        result_cache=[replace(cache, entries=0, bytes=0, limit=0) for cache in snapshot.result_cache],
        access_log=[replace(sink, waiting=0, waiting_bytes=0, last_error="") for sink in snapshot.access_log],
        spool=replace(snapshot.spool, records=0, bytes=0, segments=0),
        permits_up=True,
    )


# -- pools and counters


def _plain_stats(
    stats: object, counters: Iterable[str], tallies: Iterable[str], histograms: Iterable[str]
) -> dict[str, Any]:
    return {
        **{name: int(getattr(stats, name)) for name in counters},
        **{name: dict(getattr(stats, name).counts) for name in tallies},
        **{name: _plain_histogram(getattr(stats, name)) for name in histograms},
    }


def _plain_histogram(histogram: Histogram) -> list[int]:
    return [*map(int, histogram.counts), int(histogram.sum_us)]


def _plain_pool(pool: PoolSnapshot) -> dict[str, Any]:
    stats = pool.stats
    return {
        **{name: getattr(pool, name) for name in _POOL_FIELDS},
        "stats": {
            **_plain_stats(stats, POOL_COUNTERS, POOL_TALLIES, ("connect_time",)),
            "query_time": {kind: _plain_histogram(stats.query_time[kind]) for kind in KINDS},
            "queue_times": {kind: _plain_histogram(stats.queue_times[kind]) for kind in KINDS},
        },
    }


_POOL_NUMBERS: Final = (
    "minimum",
    "maximum",
    "active",
    "idle",
    "waiting",
    "pinned",
    "busy",
    "parses",
    "spared",
)
_POOL_FIELDS: Final = ("database", "pool", "host", *_POOL_NUMBERS)


def _pool(given: Mapping[str, Any]) -> PoolSnapshot:
    stats = PoolStats()
    _fill(stats, given["stats"], POOL_COUNTERS, POOL_TALLIES, ("connect_time",))
    for kind in KINDS:
        _fill_histogram(stats.query_time[kind], given["stats"]["query_time"][kind])
        _fill_histogram(stats.queue_times[kind], given["stats"]["queue_times"][kind])
    return PoolSnapshot(**{name: given[name] for name in _POOL_FIELDS}, stats=stats)


def _fill(
    stats: object,
    given: Mapping[str, Any],
    counters: Iterable[str],
    tallies: Iterable[str],
    histograms: Iterable[str],
) -> None:
    for name in counters:
        setattr(stats, name, int(given[name]))
    for name in tallies:
        getattr(stats, name).counts.update(given[name])
    for name in histograms:
        _fill_histogram(getattr(stats, name), given[name])


def _fill_histogram(histogram: Histogram, given: Sequence[int]) -> None:
    if len(given) != len(histogram.counts) + 1:
        raise ValueError("a histogram of other buckets")
    for index in range(len(histogram.counts)):
        histogram.counts[index] = given[index]
    histogram.sum_us = given[-1]


def _add(
    whole: object, part: object, counters: Iterable[str], tallies: Iterable[str], histograms: Iterable[str]
) -> None:
    for name in counters:
        setattr(whole, name, getattr(whole, name) + getattr(part, name))
    for name in tallies:
        _add_tally(getattr(whole, name), getattr(part, name))
    for name in histograms:
        getattr(whole, name).add(getattr(part, name))


def _add_tally(whole: Tally, part: Tally) -> None:
    for name, number in part.counts.items():
        whole.counts[name] = whole.counts.get(name, 0) + number


def _merged_pools(pools: Sequence[PoolSnapshot]) -> PoolSnapshot:
    stats = PoolStats()
    for pool in pools:
        _add(stats, pool.stats, POOL_COUNTERS, POOL_TALLIES, ("connect_time",))
        for kind in KINDS:
            stats.query_time[kind].add(pool.stats.query_time[kind])
            stats.queue_times[kind].add(pool.stats.queue_times[kind])
    sums = {name: sum(getattr(pool, name) for pool in pools) for name in _POOL_NUMBERS}
    return replace(pools[0], stats=stats, **sums)


# -- hosts, caches, the access log


def _merged_hosts(hosts: Sequence[HostSnapshot]) -> HostSnapshot:
    roles = [host.role for host in hosts if host.role != "unknown"]
    return replace(
        hosts[0],
        role=roles[0] if roles else "unknown",
        connected=all(host.connected for host in hosts),
        breaker=max((host.breaker for host in hosts), key=_badness),
        response_time=_worst(host.response_time for host in hosts),
        lag=_worst(host.lag for host in hosts),
        error=next((host.error for host in hosts if host.error), ""),
    )


def _badness(breaker: str) -> int:
    return {"closed": 0, "half-open": 1, "open": 2}.get(breaker, len(BREAKER_STATES))


def _worst(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _caches(caches: Iterable[CacheSnapshot]) -> list[CacheSnapshot]:
    return _grouped(caches, lambda cache: cache.database, _summed)


def _merged_sinks(sinks: Sequence[SinkSnapshot]) -> SinkSnapshot:
    return replace(
        _summed(sinks), last_error=next((sink.last_error for sink in sinks if sink.last_error), "")
    )


def _summed(parts: Sequence[T]) -> T:
    """Return the first of some dataclasses with the sums of their numbers."""
    first: Any = parts[0]
    numbers = [name for name, value in asdict(first).items() if isinstance(value, int)]
    summed: T = replace(first, **{name: sum(getattr(part, name) for part in parts) for name in numbers})
    return summed


def _grouped(items: Iterable[T], key: Callable[[T], object], merge: Callable[[Sequence[T]], T]) -> list[T]:
    groups: dict[object, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return [merge(group) for group in groups.values()]
