"""One connection to a PostgreSQL server, and what it may be used for next.

A Server is a transport's protocol. It is lent to a Borrower for a while; what the server sends goes to that
borrower as the reply queue decides. Between borrowers it stands idle in its pool, under the label of the
identity whose claim it carries.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Final, final

from mypy_extensions import i64, mypyc_attr

from proxy.errors import ClientError, ProtocolViolation, ServerEnds, UpstreamUnavailable
from proxy.query.parameters import HIDDEN, Profile
from proxy.query.prepared import Statement
from proxy.transport.outlet import Outlet
from proxy.transport.way import Way
from proxy.wire.messages import TERMINATE, close_statement, error_fields
from proxy.wire.replies import ReplyQueue
from proxy.wire.reply import CLOSE, SKIP, Peer, Reply

log = logging.getLogger(__name__)

# States of a server connection.
IDLE: Final = 1  # in its pool
LENT: Final = 2  # a borrower uses it
CLOSED: Final = 3

MAX_STATEMENTS: Final = 500
"""Prepared statements that one server connection holds; each takes some 10 KiB of the server's memory."""

MAX_STATEMENT_BYTES: Final = 4 * 1024 * 1024
"""Their texts together: the server keeps each several times, as text, as trees and as plans."""

MAX_UNNAMED_SPARED: Final = 4
"""Parses of one unnamed statement in a row that are not sent. PostgreSQL plans a statement with its values for five
executions (plancache.c, choose_custom_plan), as it would behind a Parse each: it never comes to a generic plan."""

UNNAMED_LASTS: Final = 1.0
"""Seconds for which a Parse is not sent again. What a statement uses PostgreSQL looks at again by itself; but not what
was made past the proxy since, and would come first: a table earlier in the search_path, a closer function."""

_NOW: Final = 1e-9
"""A time to retire at that has always come."""

HIGH_WATER: Final = 16_384
"""Bytes that the kernel did not take, before their peer is paused: a client that stops reading then costs this and
one full read (256 KiB), and no more however long it stops."""


FEW_ANSWERS: Final = 5_000
"""Answers owed at which a borrower that sent too much ahead goes on. PostgreSQL sends full buffers of 8 KiB until
a Sync or Flush comes, so some 1,600 of the shortest answers may be missing for ever."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Borrower(Peer):
    """Whoever uses a server connection: a client's session, or an errand of the proxy's own."""

    identity: str
    """Whose claim its statements need, "" for nobody's."""

    waiting_since: float
    """When it began to wait for a connection, in seconds of the monotonic clock."""

    stranded_since: float = 0.0
    """Since when no host can serve it; 0.0 where one can."""

    next_waiter: Borrower | None = None
    """Who waits behind it, in the queue that it stands in."""

    def granted(self, server: Server) -> None:
        """Take the connection that was waited for."""
        raise AssertionError

    def refused(self, error: ClientError) -> None:
        """Learn that no connection will come."""
        raise AssertionError

    def reroute(self, now: float) -> None:
        """Look anew for a host that can serve what waits."""
        raise AssertionError

    def ready(self, now: float) -> None:
        """Learn that the server is ready for the next query and owes nothing."""
        raise AssertionError

    def lost(self, error: ClientError) -> None:
        """Learn that the connection is gone."""
        raise AssertionError

    def relieved(self) -> None:
        """Learn that a crowded server owes few enough answers again."""
        raise AssertionError

    def server_full(self) -> None:
        """Stop sending: the server does not read as fast."""
        raise AssertionError

    def server_drained(self) -> None:
        """Go on sending."""
        raise AssertionError


@final
class Server:
    """A server connection after its login; uvloop calls the protocol methods."""

    def __init__(
        self,
        transport: asyncio.Transport,
        address: str,
        pid: int,
        secret: bytes,
        parameters: dict[bytes, bytes],
        login: str,
        closed: Callable[[Server], None],
        now: float,
        sock: socket.socket | None = None,
        way: Way | None = None,
    ) -> None:
        # Kept: looking it up in its module costs more than the call.
        self._clock: Final = time.monotonic
        self.transport: asyncio.Transport = transport
        self.outlet = Outlet(transport, sock)
        self.address = address
        # The IP address that it is connected to, "" for a Unix socket and a tunnel: a name may come to mean another.
        peer = transport.get_extra_info("peername")
        self.peer: str = peer[0] if isinstance(peer, tuple) else ""
        # How its host is reached, for cancel requests; they are encrypted where it is.
        self.way: Way | None = way
        self.encrypted = sock is None
        self.pid = pid
        self.secret = secret
        self.login = login
        self.closed = closed
        self.state: i64 = IDLE
        self.borrower: Borrower | None = None
        self.replies = ReplyQueue()
        self.replies.parameters = parameters
        # What it reported at its login: the defaults of its login and database.
        self.defaults: dict[bytes, bytes] = dict(parameters)
        # The same number for connections that report the same of what clients are shown.
        self.family: i64 = hash(frozenset([each for each in parameters.items() if each[0] not in HIDDEN])) | 1
        self.last_byte_at: float = now
        # Whose claim it carries, "" for nobody's, and when that has to be renewed (monotonic seconds).
        self.label: str = ""
        self.renew_at: float = 0.0
        # The session parameters it has now.
        self.profile: Profile | None = None
        # Why it must be reset before anybody else uses it, "" where it need not.
        self.unclean: str = ""
        # Statements it holds by number, the least recently used first; the unnamed one; prelude forms.
        self.statements: dict[int, Statement] = {}
        self.statement_bytes: i64 = 0
        # How many were ever prepared here.
        self.parses: i64 = 0
        self.unnamed: Statement | None = None
        # Parses of it that need not be sent again, and since when.
        self._unnamed_spares: i64 = 0
        self._unnamed_at: float = now
        # Statements that no longer fit their tables: closed before they are parsed anew.
        self.stale: set[int] = set()
        self.preludes: set[int] = set()
        # Parses that it was spared, as it held the statement.
        self.spared: i64 = 0
        # Cancel requests on their way to it: it is not lent to anybody else until they are done.
        self.cancels: i64 = 0
        self.connected_at: float = now
        self.last_used: float = now
        # When the transaction that it is in, or was in last, began here.
        self.begun_at: float = now
        self.retire_at: float = 0.0
        self.uses: i64 = 0
        self.paused = False
        # Its borrower sends no more until fewer answers are owed.
        self.crowded = False
        # The other side ended it, or the network did.
        self.broke = False

    # -- protocol methods, called by the event loop

    def data_received(self, data: bytes) -> None:
        """Take bytes from the server."""
        now = self._clock()
        self.last_byte_at = now
        try:
            ready = self.replies.scan(data, now)
        except ServerEnds:
            self._ended(now)
            return
        except ProtocolViolation as error:
            log.error("server %s pid %d: %s; connection closed", self.address, self.pid, error)
            # Nothing is asked once more because of it: that would hide a server which can't be trusted.
            self.replies.told = True
            self.fail(UpstreamUnavailable(f"server {self.address} broke the protocol", extra=str(error)))
            return
        if ready:
            borrower = self.borrower
            if borrower is not None:
                borrower.ready(now)
        elif self.crowded and self.replies.length < FEW_ANSWERS:
            self.crowded = False
            borrower = self.borrower
            if borrower is not None:
                borrower.relieved()

    def _ended(self, now: float) -> None:
        """Take the server's last words. Behind a whole answer they are told to who still holds the connection."""
        replies = self.replies
        borrower = self.borrower
        if replies.head is None and replies.became_ready and borrower is not None:
            self.retire_at = _NOW
            borrower.ready(now)
        borrower = self.borrower
        if replies.head is None and borrower is not None:
            replies.parted = True
            borrower.forward(replies.last_error)
        self.connection_lost(None)

    def eof_received(self) -> bool:
        """Let the transport close: a server that ends is gone."""
        return False

    def connection_lost(self, failure: Exception | None) -> None:
        """Learn that the connection is gone."""
        fields = error_fields(self.replies.last_error, 0, len(self.replies.last_error))
        reason = fields.get("M", "") or (str(failure) if failure else "connection closed by the server")
        self.broke = True
        self.fail(UpstreamUnavailable(f"connection to {self.address} was lost", extra=reason))

    def pause_writing(self) -> None:
        """Learn that the server's socket is full."""
        if self.borrower is not None:
            self.borrower.server_full()

    def resume_writing(self) -> None:
        """Learn that the server's socket takes bytes again."""
        if self.borrower is not None:
            self.borrower.server_drained()

    # -- use

    def lend(self, borrower: Borrower) -> None:
        """Give the connection to `borrower`."""
        self.state = LENT
        self.borrower = borrower
        self.replies.peer = borrower
        self.uses += 1
        self.crowded = False

    def take_back(self, now: float) -> None:
        """Take the connection from its borrower."""
        self.state = IDLE
        self.borrower = None
        self.replies.peer = None
        self.last_used = now
        if self.paused:
            self.resume_reading()

    def pause_reading(self) -> None:
        """Stop taking bytes from the server: its client does not read as fast."""
        if not self.paused and self.state != CLOSED:
            self.paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Take bytes from the server again."""
        if self.paused and self.state != CLOSED:
            self.paused = False
            self.transport.resume_reading()

    def hold(self, statement: Statement) -> bytes:
        """Note that `statement` is being parsed here.

        Returns what must be sent in front of its Parse: a Close of the statement itself where it is stale, and of
        the least recently used where there are too many. Their replies are queued.
        """
        size: i64 = len(statement.sql)
        self.parses += 1
        closing = b""
        if self.stale and statement.number in self.stale:
            self.stale.discard(statement.number)
            closing = close_statement(statement.name)
            self.replies.push(Reply(CLOSE, SKIP, statement))
        while self.statements and (
            len(self.statements) >= MAX_STATEMENTS or self.statement_bytes + size > MAX_STATEMENT_BYTES
        ):
            evicted = self.statements[next(iter(self.statements))]
            self.drop(evicted)
            closing += close_statement(evicted.name)
            self.replies.push(Reply(CLOSE, SKIP, evicted))
        self.statements[statement.number] = statement
        self.statement_bytes += size
        return closing

    def drop(self, statement: Statement) -> bool:
        """Note that `statement` is not prepared here; False if it was not thought to be."""
        if self.statements.pop(statement.number, None) is None:
            return False
        self.statement_bytes -= len(statement.sql)
        return True

    def holds(self, statement: Statement) -> bool:
        """Tell whether `statement` is prepared here; it becomes the most recently used."""
        statements = self.statements
        number: int = statement.number
        if number not in statements:
            return False
        if len(statements) > MAX_STATEMENTS // 2:
            del statements[number]
            statements[number] = statement
        return True

    def name_unnamed(self, statement: Statement | None) -> None:
        """Note that `statement` is the unnamed one from now on, None for none, and that its next Parse is sent."""
        self.unnamed = statement
        self._unnamed_spares = 0

    def parses_unnamed(self, statement: Statement, now: float) -> None:
        """Note that a Parse makes `statement` the unnamed one, to be executed at once and perhaps again."""
        self.unnamed = statement
        self._unnamed_spares = MAX_UNNAMED_SPARED if statement.is_steady else 0
        self._unnamed_at = now

    def spares_unnamed(self, statement: Statement, now: float) -> bool:
        """Tell whether a Parse of the unnamed `statement` need not be sent, and count it."""
        if (
            self.unnamed is not statement
            or self._unnamed_spares == 0
            or now - self._unnamed_at >= UNNAMED_LASTS
        ):
            return False
        self._unnamed_spares -= 1
        self.spared += 1
        return True

    def outdate(self, statement: Statement) -> None:
        """Note that `statement` has to be parsed anew before it is used again here."""
        if self.drop(statement):
            self.stale.add(statement.number)

    def forget_session(self) -> None:
        """Forget all session state: DISCARD ALL was confirmed."""
        self.label = ""
        self.renew_at = 0.0
        self.profile = None
        self.unclean = ""
        self.statements = {}
        self.statement_bytes = 0
        self.stale = set()
        self.name_unnamed(None)
        self.preludes = set()

    def fail(self, error: ClientError) -> None:
        """Close at once and tell the borrower and the pool; safe to call again."""
        if self.state == CLOSED:
            return
        self.state = CLOSED
        borrower = self.borrower
        self.borrower = None
        self.replies.peer = None
        self.transport.abort()
        self.closed(self)
        if borrower is not None:
            borrower.lost(error)

    def close(self) -> None:
        """End an idle connection in good order."""
        if self.state == CLOSED:
            return
        self.state = CLOSED
        self.borrower = None
        self.replies.peer = None
        self.outlet.write(TERMINATE)
        self.transport.close()
        self.closed(self)
