"""What every login of a process goes by, whatever its database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from proxy.auth.key import Key
from proxy.auth.keystore import KeyStore
from proxy.auth.ratelimit import TokenBucket
from proxy.auth.shared_limits import SharedLimits
from proxy.errors import ClientError, PoolExhausted, ShuttingDown
from proxy.observe.stats import ProxyStats
from proxy.session.database import Database
from proxy.session.logins import Unproven
from proxy.session.sessions import Sessions, Visitor

if TYPE_CHECKING:
    # It takes time and memory to import the client of a store, which most have not.
    from proxy.auth.permits import PermitStore

CONSOLES = ("pgsluice", "pgbouncer")
"""Names of the admin console, as a database: our own, and what tools for PgBouncer ask for."""


@dataclass(frozen=True)
class Entrant:
    """A client that has proven its key, and asks for the admin console under one of its names."""

    transport: asyncio.Transport
    key: Key
    database: str
    application_name: str
    log_part: bytes


class Unfinished(Protocol):
    """A connection on its way to a session."""

    def end(self, error: ClientError) -> None:
        """Close it; who can be told is told why."""


@dataclass
class Gate:
    """What every login needs to know; one for each process."""

    databases: dict[str, Database]
    keys: dict[str, KeyStore]
    methods: list[str]
    auth_timeout: float
    max_clients: int
    mock_secret: bytes
    sessions: Sessions
    cancel: Callable[[int, bytes], Awaitable[None]]
    stats: ProxyStats
    draining: bool = False
    # Gives the admin console to a client that asks for it, where there is one; and the databases that take nobody new.
    console: Callable[[Entrant], Visitor] | None = None
    disabled: set[str] = field(default_factory=set)
    logins: set[Unfinished] = field(default_factory=set)
    unproven: Unproven[Unfinished] = field(default_factory=Unproven)
    buckets: dict[str, TokenBucket] = field(default_factory=dict)
    # Where other processes count the same keys' statements, if anywhere.
    permits: PermitStore | None = None
    # What keys have left in all workers, where there are several.
    limits: SharedLimits | None = None

    def check_room(self) -> None:
        """Raise what keeps everybody new out now: the end of the process, or too many clients."""
        if self.draining:
            raise ShuttingDown()
        if len(self.sessions) >= self.max_clients:
            self.stats.connections_refused += 1
            raise PoolExhausted(
                "too many clients",
                extra=f"max_clients={self.max_clients}",
                hint="Raise listen.max_clients.",
            )

    def bucket(self, key: Key) -> TokenBucket | None:
        """Return the key's token bucket, shared by its sessions; None where it has no limit."""
        if key.rate_limit_per_minute <= 0:
            return None
        bucket = self.buckets.get(key.id)
        if bucket is None or bucket.per_minute != key.rate_limit_per_minute:
            now, per_minute = time.monotonic(), key.rate_limit_per_minute
            if self.permits is not None:
                bucket = self.permits.bucket(key.id, per_minute, now)
            elif self.limits is not None:
                bucket = self.limits.bucket(key.id, per_minute, now)
            else:
                bucket = TokenBucket(per_minute, now)
            self.buckets[key.id] = bucket
        return bucket

    async def take(self, key: Key) -> float:
        """Take one from the key's bucket; returns 0.0, or the seconds until there will be one."""
        bucket = self.bucket(key)
        if bucket is None:
            return 0.0
        if bucket.lacks(now := time.monotonic()):
            known: asyncio.Future[float] = asyncio.get_running_loop().create_future()
            bucket.wait(lambda at: None if known.done() else known.set_result(at), now)
            await known
        return bucket.take(time.monotonic())
