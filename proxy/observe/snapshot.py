"""The facts of one moment that metrics and health are made of.

Whoever wires the objects fills these in when it is asked; nobody keeps them. The counters inside are the
living ones, not copies: they are read in the same turn of the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from proxy.observe.stats import PoolStats, ProxyStats

ROLES: Final = ("primary", "replica", "unknown")
BREAKER_STATES: Final = ("closed", "open", "half-open")


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """One pool of server connections. `host` is empty where the pool spans several."""

    database: str
    pool: str
    host: str
    minimum: int
    maximum: int
    active: int
    idle: int
    waiting: int
    stats: PoolStats
    # Of the active ones.
    pinned: int = 0
    # Connections that are being opened, or reset.
    busy: int = 0
    # Since the start: named statements that servers were sent to parse, and those that weren't, as the server held
    # them.
    parses: int = 0
    spared: int = 0


@dataclass(frozen=True, slots=True)
class HostSnapshot:
    """One host as the health monitor sees it. Times are in seconds; None is what nobody has measured."""

    database: str
    host: str
    role: str
    connected: bool
    breaker: str = "closed"
    response_time: float | None = None
    lag: float | None = None
    error: str = ""
    # It is reached through a Cloudflare tunnel.
    tunnelled: bool = False


@dataclass(frozen=True, slots=True)
class ParseCacheSnapshot:
    """The cache of intents: how many texts were decided at which step, and what it holds."""

    hits: int = 0
    shape_hits: int = 0
    fingerprint_hits: int = 0
    misses: int = 0
    entries: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """One database's cache of keys, or of prepared statements: lookups since the start, and what it holds."""

    database: str
    hits: int = 0
    misses: int = 0
    entries: int = 0


@dataclass(frozen=True, slots=True)
class ResultCacheSnapshot:
    """One database's results that are kept: since the start, and what is held."""

    database: str
    hits: int = 0
    stale_hits: int = 0
    misses: int = 0
    waits: int = 0
    stores: int = 0
    refusals: int = 0
    evictions: int = 0
    invalidations: int = 0
    entries: int = 0
    bytes: int = 0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class SpoolSnapshot:
    """Access records that wait in the spool, its size and files; `dropped` are those that were damaged there."""

    records: int = 0
    bytes: int = 0
    segments: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class SinkSnapshot:
    """One destination of the access log: records since the start, and those that wait for it."""

    name: str
    written: int = 0
    dropped: int = 0
    refused: int = 0
    failures: int = 0
    waiting: int = 0
    waiting_bytes: int = 0
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole process, or all workers."""

    version: str
    compiled: bool
    ready: bool
    draining: bool
    clients: int
    max_clients: int
    proxy: ProxyStats
    pools: Sequence[PoolSnapshot] = ()
    hosts: Sequence[HostSnapshot] = ()
    # By database: sessions that no host can serve now, or that wait for the end of a pause.
    stranded: Mapping[str, int] = field(default_factory=dict)
    parse_cache: ParseCacheSnapshot = field(default_factory=ParseCacheSnapshot)
    prepared_cache: Sequence[CacheSnapshot] = ()
    key_cache: Sequence[CacheSnapshot] = ()
    result_cache: Sequence[ResultCacheSnapshot] = ()
    access_log: Sequence[SinkSnapshot] = ()
    spool: SpoolSnapshot = field(default_factory=SpoolSnapshot)
    # Whether the store of rate limits answers (true where there is none), and how often it didn't.
    permits_up: bool = True
    permit_failures: int = 0
