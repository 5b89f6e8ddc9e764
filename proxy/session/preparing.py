"""What a server connection is told in front of a session's unit, and what a client is told of units that reach none."""

from __future__ import annotations

import time

from mypy_extensions import i64

from proxy.errors import (
    ClientError,
    UpstreamUnavailable,
)
from proxy.query.intent import TRANSACTION, Intent
from proxy.query.parameters import HIDDEN
from proxy.session.answering import Answering
from proxy.session.deferral import (
    DEFERRED,
    FAILED,
)
from proxy.session.sending import Writer, undo, write_between, write_prelude
from proxy.session.settings import settings_for
from proxy.session.state import FOR_SERVER
from proxy.session.unit import Unit
from proxy.upstream.server import Server
from proxy.wire.codes import (
    FE_QUERY,
    FE_SYNC,
    IN_TRANSACTION,
)
from proxy.wire.messages import (
    READY_FAILED,
    READY_IDLE,
    error_response,
    parameter_status,
)


class Preparing(Answering):
    """Puts identity and parameters before a unit, and answers units of which nothing is sent."""

    def _prepare(self, server: Server, unit: Unit, out: Writer, now: float) -> bool:
        """Put the session's identity and parameters in front of the unit.

        Returns False where the connection has to be reset first; the unit then waits for it.
        """
        if server.label != "" and server.label != self.identity:
            raise AssertionError("a server connection under another identity's label was lent")
        database = self.database
        if server.family != self.family:
            self._tell_differences(server)
        settings = settings_for(server, self.profile, database.profiles.empty)
        if settings is None:
            self._reset_first(server, unit, now)
            return False
        if server.unclean and not self.may_write:
            # A function may have changed that: it is what keeps such a key from writing.
            settings.append(("default_transaction_read_only", "on"))
        signer = database.signer
        if signer is not None and (now >= server.renew_at or server.label == ""):
            settings.append(("sluice.identity", self._claim(server, now)))
            server.renew_at = now + database.token_ttl / 2
            self._count_claim()
        elif signer is None:
            if database.signed:
                self._drop_unit(unit, UpstreamUnavailable("the signing keys have not been read yet"))
                return False
            server.renew_at = 1e18
        server.label = self.identity
        server.profile = self.profile
        if settings:
            self.prelude_under_way = True
            write_prelude(server, settings, out)
            pool = self.pool
            if pool is not None:
                pool.stats.preludes += 1
        return True

    def _count_claim(self) -> None:
        pool = self.pool
        if pool is not None:
            pool.stats.claims += 1

    def _write_back(self, server: Server, out: Writer, now: float) -> None:
        """Restore identity and parameters behind a RESET ALL or DISCARD ALL whose Sync has not come."""
        settings = list(self.startup_profile.values)
        claim = self._claim(server, now)
        if claim:
            settings.append(("sluice.identity", claim))
        write_between(server, settings, out)

    def _claim(self, server: Server, now: float) -> str:
        """Return the session's signed identity for `server`, "" where identities are not signed."""
        database = self.database
        if database.signer is None:
            return ""
        expires = now + database.wall_offset + database.server_offset + database.token_ttl
        # Whole seconds, rounded up: with a token_ttl of a few it would end before half of it, when it is renewed.
        return database.signer.sign(self.identity, server.pid, server.login, int(expires) + 1)

    def _restore(self, server: Server, unit: Unit, out: Writer, now: float) -> None:
        """Set again, within the transaction, what a RESET took away from it.

        Not in front of a statement that ends it or that has to be its first. What is set now goes if the
        transaction is rolled back, so all of it counts as missing when that ends.
        """
        intent = unit.intent
        if server.replies.status != IN_TRANSACTION or intent is None or intent.kind == TRANSACTION:
            return
        self.restores = False
        settings = [each for each in self.startup_profile.values if self.touched.get(each[0], False)]
        if server.renew_at == 0.0 and self.database.signer is not None:
            settings.append(("sluice.identity", self._claim(server, now)))
        if settings:
            write_prelude(server, settings, out)

    def _tell_differences(self, server: Server) -> None:
        """Tell the client which parameters of its own have other values on this server connection."""
        reported = server.replies.parameters
        self._tell_reported(
            server.family, {name: value for name, value in server.defaults.items() if name in reported}
        )

    def _tell_reported(self, family: i64, reported: dict[bytes, bytes]) -> None:
        """Tell the client which parameters of its own have other values where `reported` is so."""
        self.family = family
        names = self.profile.names
        for name, value in reported.items():
            parameter = name.decode("utf-8", "replace").lower()
            if name in HIDDEN or parameter in names:
                continue
            if name != b"application_name" and self.reported.get(name) != value:
                self.reported[name] = value
                self.forward(parameter_status(name, value))

    def _reset_first(self, server: Server, unit: Unit, now: float) -> None:
        """Have the connection reset: it carries settings whose defaults are not known here."""
        pool = self.pool
        assert pool is not None
        self.server = None
        self.held_unit = unit
        self.waits |= FOR_SERVER
        self.waiting_since = now
        server.unclean = "settings of another session"
        pool.waiters.append_first(self)
        pool.give_back(server, now)
        cluster = self.database.cluster
        if cluster.paused and self.waits & FOR_SERVER != 0:
            pool.leave(self)
            self.pool = None
            cluster.park(self, now)

    def _drop_unit(self, unit: Unit, error: ClientError) -> None:
        """Answer a unit with `error` after its connection was borrowed but before anything was sent."""
        server = self.server
        pool = self.pool
        self.server = None
        if server is not None and pool is not None:
            pool.give_back(server, time.monotonic())
        self._unsent(unit, error)

    def _unsent(self, unit: Unit, error: ClientError) -> None:
        """Answer and record a unit of which nothing could be sent."""
        intent = unit.intent
        if intent is not None:
            self._denied(intent, error)
        self._answer_unsent(unit, error)

    def _answer_unsent(self, unit: Unit, error: ClientError) -> None:
        """Answer a unit of which nothing was sent with `error`, and take back the names that it had prepared."""
        if self.filling is not None:
            self.spoil()
        if unit.ended_by != FE_QUERY:
            undo(self, unit.first)
        if self.stream_left > 0:
            self.stream_to_server = False
        ends = unit.ended_by == FE_QUERY or unit.ended_by == FE_SYNC
        unit.clear()
        self._fail_unit(error, ends)

    def _fail_unit(self, error: ClientError, ends: bool) -> None:
        """Answer a unit with `error` where no server connection is involved."""
        if self.deferral == DEFERRED:
            self.deferral = FAILED
            self.begin = None
        if ends:
            self.forward(error_response(error) + (READY_FAILED if self.in_transaction else READY_IDLE))
        else:
            self.forward(error_response(error))
            self.skips_to_sync = True

    def _denied(self, intent: Intent, error: ClientError) -> None:
        database = self.database
        database.stats.denials.add(error.code)
        database.access.event(
            "denied",
            self.active_at + database.wall_offset,
            self.log_part,
            reason=error.message,
            sqlstate=error.sqlstate,
            code=error.code,
            intent=intent,
        )
