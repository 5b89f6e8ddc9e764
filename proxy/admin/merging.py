"""The facts of several workers as one, for the console's tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from proxy.admin.facts import CacheFacts, DatabaseFacts, Facts, Figures, HostFacts, KeyFacts, PoolFacts

T = TypeVar("T")


def merged(facts: Sequence[Facts]) -> Facts:
    """Return the facts of all; the first are those of the worker whose console was asked."""
    first = facts[0]
    if len(facts) == 1:
        return first
    return replace(
        first,
        clients=tuple(chain.from_iterable(each.clients for each in facts)),
        servers=tuple(chain.from_iterable(each.servers for each in facts)),
        pools=_grouped(
            (pool for each in facts for pool in each.pools),
            lambda pool: (pool.database, pool.pool, pool.host),
            _pool,
        ),
        databases=_grouped(
            (database for each in facts for database in each.databases), lambda each: each.name, _database
        ),
        hosts=_grouped(
            (host for each in facts for host in each.hosts), lambda each: (each.database, each.host), _host
        ),
        keys=_grouped(
            (key for each in facts for key in each.keys), lambda each: (each.database, each.id), _key
        ),
        caches=_grouped(
            (cache for each in facts for cache in each.caches), lambda each: each.database, _cache
        ),
        console=sum((each.console for each in facts), Figures()),
        logging_in=sum(each.logging_in for each in facts),
        paused=all(each.paused for each in facts),
    )


def added(figures: Iterable[dict[str, Figures]]) -> dict[str, Figures]:
    """Return the sums of each database's figures."""
    sums: dict[str, Figures] = {}
    for each in figures:
        for name, part in each.items():
            sums[name] = sums.get(name, Figures()) + part
    return sums


def _pool(pools: Sequence[PoolFacts]) -> PoolFacts:
    return _summed(pools, "minimum", "maximum", "opening")


def _database(databases: Sequence[DatabaseFacts]) -> DatabaseFacts:
    return replace(
        databases[0],
        paused=all(each.paused for each in databases),
        disabled=any(each.disabled for each in databases),
        figures=sum((each.figures for each in databases), Figures()),
    )


def _host(hosts: Sequence[HostFacts]) -> HostFacts:
    """Return what the first knows of a host, and the worst that any of them sees."""
    roles = [host.role for host in hosts if host.role != "unknown"]
    return replace(
        _summed(hosts, "servers", "idle", "waiting"),
        role=roles[0] if roles else "unknown",
        up=all(host.up for host in hosts),
        breaker=next((host.breaker for host in hosts if host.breaker != "closed"), "closed"),
        response_time=_most(host.response_time for host in hosts),
        lag=_most(host.lag for host in hosts),
        error=next((host.error for host in hosts if host.error), ""),
    )


def _key(keys: Sequence[KeyFacts]) -> KeyFacts:
    return _summed(keys, "clients")


def _cache(caches: Sequence[CacheFacts]) -> CacheFacts:
    return _summed(
        caches,
        *("hits", "shape_hits", "fingerprint_hits", "misses", "entries", "bytes"),
        *("prepared", "prepared_shared", "prepared_bytes"),
    )


def _summed(parts: Sequence[T], *names: str) -> T:
    sums = {name: sum(getattr(part, name) for part in parts) for name in names}
    summed: T = replace(parts[0], **sums)  # type: ignore[type-var]
    return summed


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _grouped(
    items: Iterable[T], key: Callable[[T], object], merge: Callable[[Sequence[T]], T]
) -> tuple[T, ...]:
    groups: dict[object, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return tuple(merge(group) for group in groups.values())
