"""A world without a network: clients and servers joined in memory, driven step by step.

A Client is a session behind a transport that records. What is written to a server waits until World.settle() has
its Backend answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from proxy.auth.key import Key
from proxy.auth.ratelimit import TokenBucket
from proxy.errors import ClientError
from proxy.observe.record import AccessBuffer, pool_part, session_part
from proxy.observe.stats import ProxyStats
from proxy.query.cache import IntentCache
from proxy.query.functions import FunctionCatalog
from proxy.session.database import Database
from proxy.session.session import Session
from proxy.upstream.cluster import ROUND_ROBIN, Cluster, Host
from proxy.upstream.pool import Pool, PoolLimits
from proxy.upstream.server import Server
from tests.session.backend import DEFAULTS, REPORTED, Backend, FakeTransport
from tests.session.frontend import query

SECRET_SHA256 = b"\0" * 32


class Client:
    """A session and what its client got."""

    def __init__(self, world: World, session: Session, transport: FakeTransport) -> None:
        self.world = world
        self.session = session
        self.transport = transport
        self._taken = 0

    def send(self, *messages: bytes) -> None:
        """Have `messages` arrive in one piece; nothing is answered yet."""
        self.session.data_received(b"".join(messages))

    def take(self) -> bytes:
        """Return what has come since the last time."""
        data = self.transport.all
        new, self._taken = data[self._taken :], len(data)
        return new

    def ask(self, *messages: bytes) -> bytes:
        """Send `messages`, let every server answer, and return what came."""
        self.send(*messages)
        self.world.settle()
        return self.take()

    def server(self) -> Server | None:
        """Return the server connection that the session holds."""
        return self.session.server

    def paused(self) -> bool:
        """Tell whether the proxy reads nothing from the client."""
        return self.transport.paused

    def closed(self) -> bool:
        """Tell whether the proxy has closed the connection."""
        return self.transport.closed

    def vanish(self) -> None:
        """Lose the connection."""
        self.transport.closed = True
        self.session.connection_lost(None)


class FakeSigner:
    """Makes claims that a Backend reads."""

    def sign(self, who: str, backend_pid: int, session_user: str, expires: int) -> str:
        return f"{who}~{backend_pid}~{session_user}~{expires}"


def limits(
    maximum: int = 2,
    minimum: int = 0,
    acquire_timeout: float = 30.0,
    idle_timeout: float = 0.0,
    max_lifetime: float = 0.0,
    max_uses: int = 0,
    strict: bool = False,
) -> PoolLimits:
    return PoolLimits(minimum, maximum, acquire_timeout, idle_timeout, max_lifetime, max_uses, strict)


class World:
    """One database: a primary, perhaps a replica, their pools, and the clock."""

    def __init__(
        self,
        maximum: int = 2,
        replica: bool = False,
        strict: bool = False,
        lazy_begin: bool = False,
        now: Callable[[], float] = lambda: time.monotonic(),
    ) -> None:
        self._clock = now
        self.users: set[str] = set()
        self.backends: list[Backend] = []
        self.abandoned: list[Server] = []
        # Statements that fail on every server, by a part of their SQL, with their SQLSTATE.
        self.failing: dict[str, str] = {}
        self._wanted: list[Pool] = []
        hosts = [Host("one", "one", 5432, "primary")]
        if replica:
            hosts.append(Host("two", "two", 5432, "replica"))
        for host in hosts:
            host.up = True
            host.last_error = ""
            host.fresh_as_of = 1e9
            for name in ("primary", "readonly", "priority", "background", "admin"):
                pool = Pool(name, host.name, limits(maximum, strict=strict), pool_part(name, host.name))
                pool.open = self._wanted.append
                host.pools[name] = pool
        self.cluster = Cluster("app", hosts, ROUND_ROBIN, 10.0)
        self.cluster.roles_changed()
        self.stats = ProxyStats()
        self.access = AccessBuffer(b"\0" * 10)
        intents = IntentCache(FunctionCatalog.builtin(), 16384)
        unfinished = IntentCache(FunctionCatalog.builtin(), 1).lookup(b"-- unfinished")
        self.database = Database("app", self.cluster, intents, unfinished, self.access, self.stats)
        self.database.signer = FakeSigner()
        self.database.lazy_begin = lazy_begin

    @property
    def now(self) -> float:
        return self._clock()

    def pool(self, name: str, host: str = "one") -> Pool:
        return next(each for each in self.cluster.hosts if each.name == host).pools[name]

    def of(self, pool: str, host: str = "one") -> list[Backend]:
        """Return the backends of a pool."""
        return [each for each in self.backends if each.pool is self.pool(pool, host)]

    def client(
        self,
        user: str = "alice",
        permissions: tuple[str, ...] = ("write:tasks",),
        pool: str = "",
        rate: int = 0,
        settings: dict[str, str] | None = None,
    ) -> Client:
        """Return a client that has logged in."""
        self.users.add(user)
        key = Key("ctm_" + user.ljust(12, "0"), user, user, permissions, SECRET_SHA256, "")
        key.rate_limit_per_minute = rate
        transport = FakeTransport()
        if pool:
            settings = {**(settings or {}), "sluice.pool": pool}
        session = Session(
            self.database,
            transport,
            key,
            user,
            self.database.profiles.of(settings or {}),
            pool,
            session_part(key.id, user, "127.0.0.1", "", "app"),
            TokenBucket(rate, self.now) if rate else None,
        )
        session.reported = {reported.encode(): DEFAULTS[name].encode() for name, reported in REPORTED.items()}
        for name, value in (settings or {}).items():
            session.reported[REPORTED.get(name, name).encode()] = value.encode()
        session.on_abandon = self.abandoned.append
        return Client(self, session, transport)

    def open(self) -> bool:
        """Open the server connections that pools asked for; False if there were none."""
        wanted, self._wanted[:] = list(self._wanted), []
        for pool in wanted:
            backend = Backend(self, pool, 100 + len(self.backends))
            self.backends.append(backend)
            pool.opened(backend.server, self.now)
        return bool(wanted)

    def fail_to_open(self, reason: ClientError) -> None:
        """Let the connections that pools asked for fail."""
        wanted, self._wanted[:] = list(self._wanted), []
        for pool in wanted:
            pool.open_failed(reason)

    def settle(self) -> None:
        """Open and answer until nothing is left to do."""
        busy = True
        while busy:
            busy = self.open()
            for backend in self.backends:
                busy = backend.answer() or busy

    def check(self) -> None:
        """Check what must be true whenever nothing is under way."""
        for host in self.cluster.hosts:
            for pool in host.pools.values():
                shelved = [server for shelf in pool.idle.values() for server in shelf]
                assert len(shelved) == pool.idle_count
                assert len(set(map(id, shelved))) == len(shelved)
                assert pool.size <= pool.limits.maximum
                for label, shelf in pool.idle.items():
                    for server in shelf:
                        assert server.label == label
                        assert server.replies.empty and server.borrower is None
                        assert chr(server.replies.status) == "I"


def moved(world: World, client: Client, other: Client) -> Backend:
    """Have `client` hold another connection than that on which it prepared, and return it."""
    other.ask(query("BEGIN"))
    client.ask(query("BEGIN"))
    assert len(world.of("primary")) == 2
    return world.of("primary")[1]
