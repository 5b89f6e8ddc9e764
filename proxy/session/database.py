"""What all sessions on one database share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, final

from mypy_extensions import i64

from proxy.auth.usage import Usage
from proxy.observe.record import AccessBuffer
from proxy.observe.slow import NEVER, SlowLog
from proxy.observe.stats import ProxyStats
from proxy.query.cache import IntentCache
from proxy.query.intent import Intent
from proxy.query.parameters import Profile, Profiles
from proxy.query.prepared import StatementCache
from proxy.query.route import Route, choose
from proxy.session.results import Flight, Results
from proxy.upstream.cluster import Cluster
from proxy.upstream.server import Borrower


class ClaimSigner(Protocol):
    """Signs who asks (proxy.auth.identity)."""

    def sign(self, who: str, backend_pid: int, session_user: str, expires: int) -> str:
        """Return the claim of `who` for one backend and login, until `expires` (seconds since 1970)."""


@final
class Database:
    """One entry of `databases`: its hosts, its caches, its identity."""

    def __init__(
        self,
        name: str,
        cluster: Cluster,
        intents: IntentCache,
        unfinished: Intent,
        access: AccessBuffer,
        stats: ProxyStats,
    ) -> None:
        self.name = name
        self.cluster = cluster
        self.intents = intents
        self.statements = StatementCache()
        self.profiles = Profiles()
        self.usage = Usage()
        self.access = access
        # The access log shows texts as they came, literals and all.
        self.logs_texts: bool = access.statements == "full"
        self.stats = stats
        # Statements that take as many microseconds are told to the log.
        self.slow = SlowLog(name)
        self.slow_us: i64 = NEVER
        # The wall clock's lead over the monotonic one, and the servers' over ours, in seconds.
        self.wall_offset: float = time.time() - time.monotonic()
        self.server_offset: float = 0.0
        # With identity: signed.
        self.signer: ClaimSigner | None = None
        self.signed = True
        self.token_ttl: float = 120.0
        self.routing = True
        self.read_your_writes = True
        # A read that a replica refuses is tried on the primary.
        self.retries_refused_reads = True
        # How long statements wait for a host that can serve them, in seconds, and on how many they are tried.
        self.failover_wait: float = 5.0
        self.failover_attempts: i64 = 3
        self.session_mode = False
        self.lazy_begin = True
        self.max_parse_bytes: int = 16384
        # What stands for a unit whose end has not come: it may yet write.
        self.unfinished: Intent = unfinished
        self.first_route: Route = choose(unfinished, False, False, "", "", "")
        # What servers report to a session with a given profile; learned at its first login.
        self.reports: dict[Profile, dict[bytes, bytes]] = {}
        # Results that are kept; None where none are.
        self.results: Results | None = None
        # Asks anew, beside its session, for a result that has become stale; tells whether it does.
        self.refresh: Callable[[Borrower, Flight, bytes], bool] | None = None
