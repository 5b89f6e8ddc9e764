"""All clients of a process, by the process id that they were told for cancel requests."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Protocol

from proxy.auth.key import Key
from proxy.errors import ClientError
from proxy.session.session import Session
from proxy.session.state import SessionState
from proxy.upstream.server import Server

_WORKER_BITS = 8
"""Of a process id: 256 processes, old and new; the other 23 bits are random, as the whole secret is."""


def worker_of(pid: int) -> int:
    """Return the number of the process whose session was told the process id `pid`."""
    return pid & (1 << _WORKER_BITS) - 1


class Visitor(Protocol):
    """A client whom the proxy serves by itself, without any server: the admin console's."""

    key: Key
    transport: asyncio.Transport
    # When it came and when it last asked something, in seconds since 1970.
    connected_at: float
    active_at: float
    log_part: bytes
    pid: int
    secret: bytes
    # What the client is told of parameters at its login.
    reports: dict[bytes, bytes]
    # To be called when it ends.
    on_end: Callable[[Visitor], None] | None

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""

    def cancel(self) -> None:
        """Cancel what it waits for."""

    def idle(self) -> bool:
        """Tell whether nothing is under way, so that a drain may end it."""

    def fatal(self, error: ClientError) -> None:
        """Tell the client why, and end it."""


class Sessions:
    """All clients of this process by the process id that they were told: sessions, and the console's visitors."""

    def __init__(self, abandoned: Callable[[Server], None], worker: int = 0) -> None:
        self.by_pid: dict[int, Session] = {}
        self.visitors: dict[int, Visitor] = {}
        self._abandoned = abandoned
        self._worker = worker

    def __len__(self) -> int:
        return len(self.by_pid) + len(self.visitors)

    def add(self, session: Session, minor: int = 0) -> None:
        """Enter `session` under a new process id, with a secret for cancel requests.

        `minor` is the protocol's minor version: a secret has 4 bytes before 3.2, and 32 from then on, as
        PostgreSQL's. The process id tells which worker holds the session, see worker_of.
        """
        session.pid, session.secret = self._new_id(minor)
        session.on_end = self._ended
        session.on_abandon = self._abandoned
        self.by_pid[session.pid] = session

    def admit(self, visitor: Visitor, minor: int = 0) -> None:
        """Enter a visitor of the console in the same way."""
        visitor.pid, visitor.secret = self._new_id(minor)
        visitor.on_end = self._left
        self.visitors[visitor.pid] = visitor

    def _new_id(self, minor: int) -> tuple[int, bytes]:
        pid = 0
        while pid == 0 or pid in self.by_pid or pid in self.visitors:
            pid = secrets.randbits(31 - _WORKER_BITS) << _WORKER_BITS | self._worker
        return pid, secrets.token_bytes(32 if minor >= 2 else 4)

    def _left(self, visitor: Visitor) -> None:
        self.visitors.pop(visitor.pid, None)

    def _ended(self, session: SessionState) -> None:
        self.by_pid.pop(session.pid, None)

    def of_key(self, key_id: str) -> list[Session]:
        """Return the sessions that logged in with the key `key_id`."""
        return [session for session in self.by_pid.values() if session.key.id == key_id]

    def visitors_of_key(self, key_id: str) -> list[Visitor]:
        """Return the visitors who logged in with the key `key_id`."""
        return [visitor for visitor in self.visitors.values() if visitor.key.id == key_id]

    def clients(self) -> list[Session | Visitor]:
        """Return all of them."""
        return [*self.by_pid.values(), *self.visitors.values()]
