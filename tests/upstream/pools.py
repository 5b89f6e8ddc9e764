"""A pool whose connections open when told to, and those who borrow from it."""

from __future__ import annotations

from proxy.errors import ClientError
from proxy.upstream.pool import Pool, PoolLimits
from proxy.upstream.server import Borrower, Server
from proxy.wire.messages import query
from proxy.wire.reply import Reply
from tests.session.backend import FakeTransport
from tests.session.frontend import message

DISCARDED = message(b"C", b"DISCARD ALL\0") + message(b"Z", b"I")


class User(Borrower):
    """Somebody who borrows, under a user's name."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.waiting_since = 0.0
        self.server: Server | None = None
        self.servers: list[Server | None] = []
        self.error: ClientError | None = None
        self.errors: list[ClientError] = []

    def granted(self, server: Server) -> None:
        self.server = server
        self.servers.append(server)

    def refused(self, error: ClientError) -> None:
        self.error = error
        self.errors.append(error)

    def lost(self, error: ClientError) -> None:
        self.error = error

    def undone(self, reply: Reply, later: Reply | None) -> None: ...


class Rig:
    """A pool whose connections open when told to."""

    def __init__(self, numbers: PoolLimits) -> None:
        self.pool = Pool("primary", "one", numbers, b"")
        self.wanted = 0
        self.pool.open = self._want

    def _want(self, pool: Pool) -> None:
        assert pool is self.pool
        self.wanted += 1

    def open(self, now: float = 0.0, label: str = "") -> Server:
        """Open one of the wanted connections."""
        assert self.wanted > 0
        self.wanted -= 1
        server = Server(FakeTransport(), "one:5432", 1, b"secr", {}, "app", self.pool.closed, now)
        server.label = label
        self.pool.opened(server, now)
        return server

    def idle(self, label: str, now: float) -> Server:
        """Have a connection idle under `label` since `now`."""
        self.wanted += 1
        self.pool.opening += 1
        return self.open(now, label)

    def take(self, identity: str, now: float = 0.0) -> User:
        """Let a user borrow."""
        user = User(identity)
        user.server = self.pool.take(user, now)
        user.servers.append(user.server)
        return user

    def release(self, user: User, now: float = 0.0) -> None:
        """Return what a user borrowed, under its label."""
        assert user.server is not None
        user.server.label = user.identity
        self.pool.give_back(user.server, now)


def written(server: Server) -> bytes:
    transport = server.transport
    assert isinstance(transport, FakeTransport)
    return transport.all


def confirm(server: Server, answer: bytes = DISCARDED) -> None:
    """Answer the reset that was sent."""
    assert written(server).endswith(query(b"DISCARD ALL"))
    server.data_received(answer)
