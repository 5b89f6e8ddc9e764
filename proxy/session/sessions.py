"""All sessions of a process, by the process id that their clients were told for cancel requests."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from proxy.session.session import Session
from proxy.session.state import SessionState
from proxy.upstream.server import Server

_WORKER_BITS = 6
"""Of a process id: 64 workers; the other 25 bits are random, as the whole secret is."""


def worker_of(pid: int) -> int:
    """Return the number of the worker whose session was told the process id `pid`."""
    return pid & (1 << _WORKER_BITS) - 1


class Sessions:
    """All sessions of this process by the process id that their clients were told."""

    def __init__(self, abandoned: Callable[[Server], None], worker: int = 0) -> None:
        self.by_pid: dict[int, Session] = {}
        self._abandoned = abandoned
        self._worker = worker

    def __len__(self) -> int:
        return len(self.by_pid)

    def add(self, session: Session, minor: int = 0) -> None:
        """Enter `session` under a new process id, with a secret for cancel requests.

        `minor` is the protocol's minor version: a secret has 4 bytes before 3.2, and 32 from then on, as
        PostgreSQL's. The process id tells which worker holds the session, see worker_of.
        """
        pid = 0
        while pid == 0 or pid in self.by_pid:
            pid = secrets.randbits(31 - _WORKER_BITS) << _WORKER_BITS | self._worker
        session.pid = pid
        session.secret = secrets.token_bytes(32 if minor >= 2 else 4)
        session.on_end = self._ended
        session.on_abandon = self._abandoned
        self.by_pid[pid] = session

    def _ended(self, session: SessionState) -> None:
        self.by_pid.pop(session.pid, None)

    def of_key(self, key_id: str) -> list[Session]:
        """Return the sessions that logged in with the key `key_id`."""
        return [session for session in self.by_pid.values() if session.key.id == key_id]
