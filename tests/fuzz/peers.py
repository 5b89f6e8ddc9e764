"""A world for fuzzing: servers that answer anything as PostgreSQL would, and tell what they are really like."""

from __future__ import annotations

import struct

from proxy.session.session import MAX_PENDING
from proxy.session.unit import MAX_BYTES
from proxy.upstream.pool import Pool
from proxy.upstream.server import CLOSED
from proxy.wire.codes import MAX_HELD
from tests.session.backend import Backend, Failed
from tests.session.fakes import Client, World
from tests.session.frontend import kinds, query, rows

LARGEST = 400_000
"""More than any one piece that is sent here."""


class TolerantBackend(Backend):
    """Answers what it can't read with 08P01, as PostgreSQL does."""

    def _message(self, kind: bytes, body: bytes) -> None:
        try:
            super()._message(kind, body)
        except (ValueError, IndexError, KeyError, struct.error):
            if self._copying:
                self._copy_failed("22021")
                return
            self._error(Failed("08P01"))
            if kind == b"Q":
                self._end_implicit()
                self._ready()
            else:
                self._skipping = True

    def check_idle(self) -> None:
        """Check that this server really is what its pool takes it for."""
        server = self.server
        assert self.status == "I" and not self._copying and not self._skipping and not self._inbox
        assert self.owner in ("", server.label.split("|")[0])
        for statement in server.statements.values():
            assert self.statements[statement.name.decode()].encode() == statement.sql
        for number in server.preludes:
            assert f"_sluice_set_{number}" in self.statements
        profile = server.profile
        if profile is not None and not server.unclean:
            for name, value in profile.values:
                assert self.settings[name] == value


class FuzzWorld(World):
    """A world of such servers."""

    def make(self, pool: Pool) -> Backend:
        """Return a new server connection's other side."""
        return TolerantBackend(self, pool, 100 + len(self.backends))

    def open(self) -> bool:
        wanted, self._wanted[:] = list(self._wanted), []
        for pool in wanted:
            backend = self.make(pool)
            self.backends.append(backend)
            pool.opened(backend.server, self.now)
        return bool(wanted)

    def check_all(self) -> None:
        """Check what must hold whenever nothing is under way."""
        self.check()
        for backend in self.backends:
            if backend.server.state != CLOSED:
                assert len(backend.server.replies._held) <= 1_048_576 + MAX_HELD
                if backend.server.borrower is None and isinstance(backend, TolerantBackend):
                    backend.check_idle()


def check_bounds(client: Client) -> None:
    """Check that a session holds no more than it may."""
    session = client.session
    assert len(session.pending) <= MAX_PENDING + LARGEST
    assert session.unit.bytes <= MAX_BYTES + LARGEST


class Innocent:
    """A client that minds its own business, and gets exactly its own answers."""

    def __init__(self, world: World, user: str, pool: str = "") -> None:
        self._world = world
        self._client = world.client(user, pool=pool)
        self._user = user
        self._number = 0

    def act(self) -> None:
        """Ask for something that nobody else asks for, and expect it."""
        self._number += 1
        mine = f"'{self._user} {self._number}'"
        came = self._client.ask(query(f"SELECT {mine}"))
        assert kinds(came) == "T D C ZI", kinds(came)
        assert rows(came) == [mine]
