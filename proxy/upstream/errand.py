"""The proxy's own business on a server connection: resetting it, rolling it back, asking it something."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from mypy_extensions import i64

from proxy.errors import ClientError, HostUnavailable, UpstreamUnavailable
from proxy.upstream.server import Borrower, Server
from proxy.wire.codes import IDLE
from proxy.wire.messages import error_fields, first_columns, query
from proxy.wire.reply import QUERY, SKIP, Reply


class Errand(Borrower):
    """Sends one Query whose answer no client sees."""

    def __init__(self, server: Server | None, sql: bytes) -> None:
        self.identity = ""
        self.waiting_since = 0.0
        self.server: Server | None = server
        self.sql = sql
        self.error = ""
        self.rows: list[list[bytes | None]] = []

    def start(self) -> None:
        """Borrow the connection and send the Query."""
        if self.server is not None:
            self.server.lend(self)
            self.granted(self.server)

    def granted(self, server: Server) -> None:
        """Send the Query on the connection that was borrowed."""
        self.server = server
        server.replies.push(Reply(QUERY, SKIP))
        server.outlet.write(query(self.sql))

    def done(self, now: float) -> None:
        """Go on after the server's answer; `error` and `rows` tell what it was."""
        raise AssertionError

    def ready(self, now: float) -> None:
        """Learn that the answer is complete."""
        self.done(now)

    def lost(self, error: ClientError) -> None:
        """Learn that the connection is gone; the pool knows by itself."""

    def forward(self, data: bytes) -> None:
        """Drop what is meant for clients: notifications that came late."""

    def undone(self, reply: Reply, later: Reply | None) -> None:
        """Learn nothing: an errand prepares nothing."""

    def completed(self, reply: Reply) -> bytes:
        """Leave the answer as it is: an errand's text is its own."""
        return b""

    def repeats(self, reply: Reply, error: bytes) -> bool:
        """Ask nothing twice."""
        return False

    def retold(self, reply: Reply, error: bytes) -> bytes:
        """Leave the error as it is."""
        return error

    def executed(self, reply: Reply) -> None:
        """Learn nothing: an errand is not logged as a client's access."""

    def copy_in(self) -> None:
        """End the connection: no errand copies."""
        if self.server is not None:
            self.server.fail(UpstreamUnavailable("a server asked for COPY data out of turn"))

    def shows(self, name: bytes, value: bytes) -> bytes | None:
        """Show no client what the proxy's own statement changed."""
        return None

    def row(self, reply: Reply, data: bytes, start: i64, end: i64) -> None:
        """Keep a row."""
        self.rows.append(first_columns(data, start, end))

    def injected_failed(self, reply: Reply, data: bytes, start: i64, end: i64) -> None:
        """Keep the error."""
        self.error = error_fields(data, start, end).get("M", "unknown error")

    def server_full(self) -> None:
        """Go on: one short Query is all that is sent."""

    def server_drained(self) -> None:
        """Go on: one short Query is all that is sent."""


@final
class Reset(Errand):
    """DISCARD ALL, alone: what lies between two users of one connection."""

    def __init__(self, server: Server, then: Callable[[Server, float], None]) -> None:
        super().__init__(server, b"DISCARD ALL")
        self.then = then

    def done(self, now: float) -> None:
        """Hand the connection on, clean; one that could not be reset is closed."""
        server = self.server
        if server is None:
            return
        if self.error:
            server.fail(UpstreamUnavailable("a server connection could not be reset", extra=self.error))
        else:
            self.then(server, now)


@final
class Rollback(Errand):
    """ROLLBACK of a transaction that its client left behind."""

    def __init__(self, server: Server, then: Callable[[Server, float], None]) -> None:
        super().__init__(server, b"ROLLBACK")
        self.then = then

    def done(self, now: float) -> None:
        """Hand the connection on; one that could not be rolled back is closed."""
        server = self.server
        if server is None:
            return
        if self.error or server.replies.status != IDLE:
            server.fail(UpstreamUnavailable("a transaction could not be rolled back", extra=self.error))
        else:
            server.unclean = "abandoned transaction"
            self.then(server, now)


@final
class Check(Errand):
    """An empty query: is the connection still there?"""

    def __init__(self, server: Server, then: Callable[[Server, float], None]) -> None:
        super().__init__(server, b"")
        self.then = then

    def granted(self, server: Server) -> None:
        """Send the query; nobody's use of the connection ends with it, so it counts as none."""
        server.uses -= 1
        super().granted(server)

    def done(self, now: float) -> None:
        """Hand the connection on; the query destroyed the unnamed statement (manual, "Extended Query")."""
        server = self.server
        if server is None:
            return
        server.name_unnamed(None)
        if self.error:
            server.fail(
                UpstreamUnavailable("an idle server connection answered with an error", extra=self.error)
            )
        else:
            self.then(server, now)


@final
class Ask(Errand):
    """One Query on any connection of a pool; `then` gets the errand itself, with `rows`, `error` or `failure`."""

    def __init__(self, sql: bytes, then: Callable[[Ask], None]) -> None:
        super().__init__(None, sql)
        self.then = then
        self.parameters: dict[bytes, bytes] = {}
        # Why there was no answer, where there was none.
        self.failure: ClientError | None = None

    def refused(self, error: ClientError) -> None:
        """Learn that no connection will come."""
        self.failure = error
        self.then(self)

    def reroute(self, now: float) -> None:
        """Learn that no connection will come here; whoever asks may ask again."""
        self.refused(HostUnavailable("no connection is opened now"))

    def lost(self, error: ClientError) -> None:
        """Learn that the connection is gone."""
        self.refused(error)

    def done(self, now: float) -> None:
        """Keep what the server reports of itself now, and leave the connection to be reset."""
        server = self.server
        if server is not None:
            self.parameters = dict(server.replies.parameters)
            server.unclean = "errand"
        self.then(self)
