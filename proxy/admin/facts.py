"""What the console's tables are made of: plain facts of one moment.

Times are in seconds: `…_at` on the wall clock since 1970, else durations; counters run from the start.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final

CONSOLE: Final = "pgbouncer"
"""The console itself, as a database and a user: what PgBouncer calls it, because dashboards leave out that name."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What was done for the clients of one database. Times are sums, in µs."""

    server_assignment_count: int = 0
    xact_count: int = 0
    query_count: int = 0
    # Bytes from clients, and to them.
    received: int = 0
    sent: int = 0
    xact_time: int = 0
    query_time: int = 0
    wait_time: int = 0
    client_parse_count: int = 0
    server_parse_count: int = 0
    bind_count: int = 0

    def __add__(self, other: Figures) -> Figures:
        return Figures(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def __sub__(self, other: Figures) -> Figures:
        return Figures(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(self)))


@dataclass(frozen=True, slots=True)
class ClientFacts:
    """One client, of a database or of the console."""

    id: int
    user: str  # the key's id
    user_id: str
    database: str
    state: str  # active, idle or waiting
    login: str  # the servers' login that it uses, or would use
    pool: str
    host: str
    address: str
    port: int
    local_address: str
    local_port: int
    connected_at: float
    request_at: float
    waiting: float = 0.0
    link: str = ""
    tls: str = ""
    application_name: str = ""
    prepared_statements: int = 0
    pins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """One server connection; a client that has it names its `ref` as its link."""

    ref: str
    login: str
    database: str
    pool: str
    host: str
    state: str  # active, idle, used, tested or being_canceled
    address: str
    port: int
    local_address: str
    local_port: int
    connected_at: float
    request_at: float
    close_needed: bool = False
    pid: int = 0
    link: str = ""
    tls: str = ""
    application_name: str = ""
    prepared_statements: int = 0
    uses: int = 0
    # Cancel requests that are on their way to it.
    cancels: int = 0


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """One pool of one host: only what its server connections don't tell."""

    database: str
    pool: str
    host: str
    login: str
    minimum: int
    maximum: int
    max_lifetime: float
    opening: int


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """One entry of `databases`."""

    name: str
    hosts: str
    port: int
    database: str
    pool_mode: str
    balance: str  # "" with one host
    paused: bool
    disabled: bool
    figures: Figures = field(default_factory=Figures)


@dataclass(frozen=True, slots=True)
class HostFacts:
    """One host as the monitor sees it; None is what nobody has measured."""

    database: str
    host: str
    address: str
    port: int
    role: str
    up: bool
    breaker: str
    response_time: float | None
    lag: float | None
    servers: int
    idle: int
    waiting: int
    error: str


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """One key that the proxy knows at the moment; never its secret."""

    id: str
    database: str
    name: str
    user_id: str
    permissions: tuple[str, ...]
    default_pool: str
    rate_limit_per_minute: int
    expires_at: float  # 0.0 = never
    state: str
    clients: int


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """What is known of statements for one database."""

    database: str
    hits: int
    shape_hits: int
    fingerprint_hits: int
    misses: int
    entries: int
    bytes: int
    prepared: int
    prepared_shared: int
    prepared_bytes: int
    # Of results: off, asked or on.
    results: str = "off"
    result_hits: int = 0
    result_stale_hits: int = 0
    result_misses: int = 0
    result_waits: int = 0
    result_stores: int = 0
    result_evictions: int = 0
    result_invalidations: int = 0
    result_entries: int = 0
    result_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """The whole process."""

    clients: tuple[ClientFacts, ...] = ()
    servers: tuple[ServerFacts, ...] = ()
    pools: tuple[PoolFacts, ...] = ()
    databases: tuple[DatabaseFacts, ...] = ()
    hosts: tuple[HostFacts, ...] = ()
    keys: tuple[KeyFacts, ...] = ()
    caches: tuple[CacheFacts, ...] = ()
    # What the console itself was asked, and the port on which it is.
    console: Figures = field(default_factory=Figures)
    port: int = 0
    logging_in: int = 0
    paused: bool = False

    @property
    def figures(self) -> dict[str, Figures]:
        """Return the figures of each database, and the console's."""
        return {each.name: each.figures for each in self.databases} | {CONSOLE: self.console}
