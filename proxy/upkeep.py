"""What ends clients from outside: keys that are revoked or run out, statements and silences that take too long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from proxy.auth.key import Key
from proxy.errors import ConfigurationChanged, IdleInTransaction, IdleSession, KeyRevoked, QueryTimeout
from proxy.observe.record import AccessBuffer
from proxy.session.cancel import cancel_held, cancel_session
from proxy.session.gate import Gate
from proxy.session.served import Served
from proxy.session.session import Session
from proxy.session.sessions import Visitor
from proxy.tasks import spawn

_SWEEP = 0.25


class Upkeep:
    """Looks after the clients of a process; `tick` is told the time now and then."""

    def __init__(
        self, served: Mapping[str, Served], gate: Gate, access: AccessBuffer, tick: Callable[[float], None]
    ) -> None:
        self._served = served
        self._gate = gate
        self._sessions = gate.sessions
        self._stats = gate.stats
        self._access = access
        self._tick = tick

    async def run(self) -> None:
        """End what takes too long: expired keys, statements, silent transactions."""
        while True:
            due = time.monotonic() + _SWEEP
            await asyncio.sleep(_SWEEP)
            now = time.monotonic()
            self._stats.loop_delay.observe(int((now - due) * 1e6))
            wall = time.time()
            self._tick(now)
            self._look_after_visitors(wall)
            for name, served in self._served.items():
                self._look_after(name, served, now, wall)

    async def cancel(self, pid: int, secret: bytes) -> bool:
        """Cancel what the client `pid` of this process does; False where `secret` is not its own."""
        self._stats.cancels += 1
        session = self._sessions.by_pid.get(pid)
        if not await cancel_session(self._sessions, pid, secret):
            self._stats.cancels_refused += 1
            return False
        if session is not None:
            self._access.event("cancel", time.time(), session.log_part)
        return True

    def key_changed(self, key_id: str, key: Key | None) -> None:
        """End the sessions of a key that was revoked, has expired or may do something else now."""
        if key is None or not key.valid(time.time()):
            self._gate.buckets.pop(key_id, None)
        for session in self._sessions.of_key(key_id):
            same = key is not None and key.valid(time.time()) and key.identity == session.key.identity
            if key is not None and same and key.allows(_address(session)):
                session.key = key
                session.bucket = self._gate.bucket(key)
                session.routed = None
                continue
            self._revoke(session)
        for visitor in self._sessions.visitors_of_key(key_id):
            same = key is not None and key.valid(time.time()) and key.identity == visitor.key.identity
            if key is not None and same and key.allows(_address(visitor)):
                visitor.key = key
            else:
                self._revoke(visitor)

    def _revoke(self, client: Session | Visitor) -> None:
        self._stats.revocations += 1
        self._access.event("revoked", time.time(), client.log_part)
        client.fatal(KeyRevoked())

    def _look_after(self, name: str, served: Served, now: float, wall: float) -> None:
        sessions = [session for session in self._sessions.by_pid.values() if session.database.name == name]
        served.keys.recheck({session.key.id for session in sessions})
        for session in sessions:
            session.note_usage()
            if not session.key.valid(wall):
                self.key_changed(session.key.id, None)
            elif session.stalled(now, served.idle_in_transaction):
                session.fatal(IdleInTransaction())
            elif session.silent(now, served.client_idle):
                session.fatal(IdleSession())
            elif served.pools.overstays(session, now):
                session.fatal(ConfigurationChanged())
            elif (server := session.overdue(now, served.query_timeout)) is not None:
                if session.pool is not None:
                    spawn(cancel_held(server, session.pool), "cancel a statement over its timeout")
            elif session.defies(now, served.query_timeout):
                # The server heeds no cancel: a function may catch it, a COPY waits for its client.
                session.fatal(QueryTimeout(extra=f"query_timeout={served.query_timeout:g}s"))

    def _look_after_visitors(self, wall: float) -> None:
        """End visitors of the console whose key has run out; their keys are those of the first database."""
        visitors = list(self._sessions.visitors.values())
        next(iter(self._served.values())).keys.recheck({visitor.key.id for visitor in visitors})
        for visitor in visitors:
            if not visitor.key.valid(wall):
                self.key_changed(visitor.key.id, None)


def _address(client: Session | Visitor) -> str:
    """Return where a client comes from; "" for a Unix socket."""
    peer = client.transport.get_extra_info("peername")
    return peer[0] if isinstance(peer, tuple) else ""
