"""What statements leave behind in the server's session: settings and pins, followed as they take effect."""

from __future__ import annotations

import logging
from typing import Final

from mypy_extensions import i64

from proxy.query.facts import POOL_PARAMETER
from proxy.query.intent import Intent
from proxy.query.parameters import HIDDEN
from proxy.query.route import pool_problem
from proxy.session.collect import ClientStatements
from proxy.session.naming import Naming
from proxy.session.settings import LASTING, Look
from proxy.session.state import FOR_LOOK, FOR_SWEEP
from proxy.upstream.server import Server
from proxy.wire.messages import first_columns
from proxy.wire.reply import QUERY, SKIP, Reply

log = logging.getLogger(__name__)

_READ_ONLY: Final = b"default_transaction_read_only"


class Following(Naming):
    """Keeps what the session has set and what holds it to its connection; asks the server for what isn't known."""

    def _took_effect(self, server: Server, intent: Intent) -> None:
        """Follow a statement that changes what a session keeps, and that succeeded."""
        if intent.sweeps:
            self.waits &= ~FOR_SWEEP
        if intent.unclean == "DISCARD ALL":
            label = server.label
            server.forget_session()
            server.label = label
            unnamed = self.statements.unnamed
            self.statements = ClientStatements()
            self.statements.unnamed = unnamed
            self.profile = self.startup_profile
            self._choose_pool()
            self._unpin(server, [pin for pin in self.pins if pin not in LASTING])
        elif "all" in intent.resets:
            server.renew_at = 0.0
            self._unpin(server, ["unseen settings"])
        if intent.resets:
            self.restores = True
        for pin in intent.pins:
            if pin in self.pins:
                self.pins[pin] = True

    def shows(self, name: bytes, value: bytes) -> bytes | None:
        """Return what the client is to see of this ParameterStatus: only what changes for itself."""
        server = self.server
        parameter = name.decode("utf-8", "replace").lower()
        if name in HIDDEN:
            # Where the client itself chose it, it is told.
            if name != _READ_ONLY or parameter not in self.touched:
                return None
        elif server is not None:
            default = server.defaults.get(name)
            chosen = self.profile.get(parameter)
            if value != (default if chosen is None else chosen.encode()):
                # Whatever changed it: a function may have.
                self.touched.setdefault(parameter, False)
                self.looks = True
            begun = self.startup_profile.get(parameter)
            if begun is not None and value == default and self.touched.get(parameter, False):
                value = self.start_reports.get(name, begun.encode())
                if name == b"application_name":
                    # Not tried on a server at the login, so that sessions share what was.
                    value = begun.encode()
        if self.reported.get(name) == value:
            return None
        self.reported[name] = value
        return value

    def row(self, reply: Reply, data: bytes, start: i64, end: i64) -> None:
        """Keep what the server answered to a look."""
        look = self.look
        if look is not None and reply.subject is look:
            look.row = first_columns(data, start, end)

    def _look(self, server: Server) -> bool:
        """Ask the server about settings that the client has touched, and about pins; True if it was asked."""
        self.looks = False
        look = Look(server, self.touched, self.pins)
        self.touched = {}
        if not look.needed:
            return False
        self.look = look
        # As any simple query does (manual, "Extended Query").
        server.name_unnamed(None)
        question = Reply(QUERY, SKIP, look)
        question.sent_at = server.last_byte_at
        server.replies.push(question)
        server.outlet.write(look.query())
        self.waits |= FOR_LOOK
        return True

    def _apply_look(self, server: Server) -> None:
        """Make what the server says the session's own."""
        self.waits &= ~FOR_LOOK
        look = self.look
        self.look = None
        assert look is not None
        if not look.answered:
            # A statement_timeout of next to nothing, say: the session stays where its settings are.
            if look.touched:
                self.pin("unseen settings")
            return
        profiles = self.database.profiles
        if look.touched:
            wanted, actual = look.apply(server, self.profile, self.startup_profile, profiles.empty)
            self.profile = profiles.of(wanted)
            server.profile = profiles.of(actual)
            self._choose_pool()
        self._unpin(server, look.gone())

    def _choose_pool(self) -> None:
        """Go by sluice.pool, which is a setting like any other; a pool that the key cannot have is none."""
        asked = self.profile.get(POOL_PARAMETER) or ""
        if asked != self.asked_pool:
            self.asked_pool = "" if pool_problem(asked, self.key.is_admin) else asked
            self.routed = None

    def pin(self, reason: str) -> None:
        """Keep the server connection from now on."""
        if reason in self.pins:
            return
        pool = self.pool
        self.pins[reason] = False
        if pool is None or self.database.session_mode:
            # There it keeps the connection anyhow.
            return
        pool.stats.pins.add(reason)
        if reason not in self.pins_told:
            # Once: a session may take and release a lock a thousand times.
            self.pins_told += (reason,)
            log.info(
                "session %d keeps a connection of pool %s on %s: %s", self.pid, pool.name, pool.host, reason
            )
        if not self.pinned:
            self.pinned = reason
            pool.pinned += 1

    def _unpin(self, server: Server, reasons: list[str]) -> None:
        """Forget reasons for keeping the connection; without any it is given back, to be reset first."""
        for reason in reasons:
            self.pins.pop(reason, None)
        if not self.pinned:
            return
        if self.pins:
            self.pinned = next(iter(self.pins))
            return
        log.debug("session %d no longer keeps its connection", self.pid)
        server.unclean = self.pinned
        self._release_pin()
