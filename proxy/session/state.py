"""What a session knows, and how it ends.

The lowest of the nine layers of a client's session, each a module and a class that builds on the one before:

    SessionState (state)      fields, cancel, timeouts, endings
    Naming       (naming)     the client's names of prepared statements, as answers confirm or undo them
    Following    (following)  settings and pins, as statements leave them behind
    Answering    (answering)  what comes back: records, what is asked once more, the connection's return
    Preparing    (preparing)  what goes before a unit: identity, parameters; units that go nowhere
    Deferring    (deferring)  units that need no server: BEGIN held back; the target of those that do
    Caching      (caching)    units whose result is kept, and keeping it
    Lending      (lending)    where a unit goes: server connection, one write
    Session      (session)    what comes in: messages, permission, rate limit
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Final

from mypy_extensions import i64

from proxy.auth.key import Key
from proxy.auth.ratelimit import TokenBucket
from proxy.errors import (
    ClientError,
    QueryCancelled,
    QueryTimeout,
    UpstreamUnavailable,
)
from proxy.query.intent import Intent
from proxy.query.parameters import Profile
from proxy.query.prepared import Statement
from proxy.query.route import Route
from proxy.session.collect import ClientStatements
from proxy.session.database import Database
from proxy.session.deferral import NONE
from proxy.session.renaming import Edit
from proxy.session.results import Flight
from proxy.session.sending import Writer
from proxy.session.settings import Look
from proxy.session.unit import Message, Unit
from proxy.transport.outlet import Outlet
from proxy.upstream.pool import Pool
from proxy.upstream.server import Borrower, Server
from proxy.wire.codes import IDLE as STATUS_IDLE
from proxy.wire.messages import TERMINATE, error_response, sqlstate
from proxy.wire.reply import QUERY, SINGLE, SYNC, Reply

# What a session waits for, as bits.
FOR_SERVER: Final[i64] = 1  # a server connection
FOR_IDLE: Final[i64] = 2  # the end of what is under way, to change to another connection
FOR_CLIENT: Final[i64] = 4  # the client to read
FOR_SOCKET: Final[i64] = 8  # the server to read
FOR_REPLIES: Final[i64] = 16  # the reply queue to become shorter
FOR_LOOK: Final[i64] = 32  # what the server says of settings and pins
FOR_PERMIT: Final[i64] = 128  # the store of rate limits to say whether a statement may run
FOR_SWEEP: Final[i64] = 64  # the answer to a RESET ALL or DISCARD ALL in the middle of a transaction


# What a key that may not write has sent since its connection was idle, as far as its READ ONLY is concerned.
TIGHT: Final[i64] = 0
LOOSE: Final[i64] = 1  # a function that the catalogue doesn't know: it may have changed settings
LOOSE_ENDED: Final[i64] = 2  # behind it the end of the transaction: the next one may be another


CANCEL_PATIENCE: Final = 5.0
"""Seconds that a statement over its time has to end in: as long as its cancel request may be on the way."""


class SessionState(Borrower):
    """The fields of a session, what others may ask of it, and its endings."""

    def __init__(
        self,
        database: Database,
        transport: asyncio.Transport,
        key: Key,
        who: str,
        profile: Profile,
        asked_pool: str,
        log_part: bytes,
        bucket: TokenBucket | None,
        sock: socket.socket | None = None,
    ) -> None:
        self.database = database
        # Kept: looking it up in its module costs more than the call.
        self.clock: Final = time.monotonic
        self.transport: asyncio.Transport = transport
        self.outlet = Outlet(transport, sock)
        self.key = key
        # In claims as it stands, and as the label of server connections.
        self.identity = who
        self.log_part = log_part
        self.connected_at: float = time.time()
        self.bucket: TokenBucket | None = bucket
        self.asked_pool = asked_pool
        # Statements that were answered since they were last added to the key's usage.
        self.uses: i64 = 0
        self.startup_profile = profile
        self.profile = profile
        self.statements = ClientStatements()
        # What the client was told of parameters; what its start's values are to a server; and the family of the
        # server connections that what it was told is true of.
        self.reported: dict[bytes, bytes] = {}
        self.start_reports: dict[bytes, bytes] = {}
        self.family: i64 = 0
        # The server connection it holds, the pool it waits at, and why it keeps its connection ("" if not).
        self.server: Server | None = None
        self.pool: Pool | None = None
        self.pinned: str = ""
        # All the reasons, and whether a statement with that reason has succeeded.
        self.pins: dict[str, bool] = {}
        self.pins_told: tuple[str, ...] = ()
        # Input that has come but is not worked on yet, and what the session waits for.
        self.pending: bytes = b""
        self.waits: i64 = 0
        self.reading_paused = False
        # The unit that is being collected, and one that is complete but waits for a server connection.
        self.unit = Unit()
        self.spare = Unit()
        self.held_unit: Unit | None = None
        self.out = Writer()
        # Bytes of a long message that still have to pass; to the server or to nowhere.
        self.stream_left: i64 = 0
        self.stream_to_server = False
        self.route: Route = database.first_route
        # The last statement that was routed to readonly, and where that was; None where the answer may have changed.
        self.routed: Intent | None = None
        self.routed_to: Route = database.first_route
        self.in_transaction = False
        # A transaction that no server knows of, and the BEGIN that is to be sent with its first statement.
        self.deferral: i64 = NONE
        self.begin: Statement | None = None
        self.begun_at: float = 0.0
        # The first message of the unit under way, if that is to be tried once more should its server die.
        self.kept: Message | None = None
        # It was refused by a replica, and is sent to the primary when that has answered to the end.
        self.turning = False
        # Of a key that may not write: whether settings may have changed unseen, and the transaction has ended since.
        self.loosened: i64 = TIGHT
        # Something was sent whose Sync has not come yet. A Query behind it ends that too, unless the server skips
        # it because of an error; which of the two, only its ReadyForQuery tells.
        self.awaits_sync = False
        self.query_is_last = False
        # The unit that takes COPY data makes what follows wait: for the end of the data first.
        self.copy_halts = False
        # An error was answered without a server; what follows is dropped up to Sync.
        self.skips_to_sync = False
        self.prelude_under_way = False
        # The unit under way, message by message, while it may have to be sent once more; and what of it is.
        self.repeatable: list[tuple[Message, bytes]] = []
        self.repeated: bytes = b""
        # The rewritten text of a Query that is under way.
        self.edit: Edit | None = None
        self.wrote = False
        # Relations that the transaction has changed, where results are kept.
        self.changed: dict[str, None] = {}
        # The answer that is under way and is to be kept; and another's for which it waits.
        self.filling: Flight | None = None
        self.awaiting: Flight | None = None
        # What its results depend on, and for which profile and pool that was worked out.
        self.scope = b""
        self.scope_profile: Profile | None = None
        self.scope_pool = ""
        # The transaction has run DDL.
        self.defined = False
        self.last_write: float = 0.0
        # The connection of the last write, and its uses then: currval() means this one, unless others used it since.
        self.last_writer: Server | None = None
        self.last_writer_uses: i64 = 0
        # Settings that this transaction may have changed, and whether they may have been reset; whether the
        # server is to be asked about them, or about pins, when it ends.
        self.touched: dict[str, bool] = {}
        self.looks = False
        self.look: Look | None = None
        # In a transaction: values of the session's start, or its identity, were reset and are set again.
        self.restores = False
        # Nothing more is taken in; it ends when all is answered, with a FATAL error where there is one.
        self.ending = False
        self.last_words: ClientError | None = None
        self.ended = False
        self.waiting_since: float = 0.0
        # On how many hosts in vain a unit was tried that waits.
        self.attempts: i64 = 0
        self.active_at: float = 0.0
        # For the supervisor, who looks now and then: the statement that was under way, since when, as far as is
        # known, and when something last was.
        self.watched: Reply | None = None
        self.watched_since: float = 0.0
        self.busy_at: float = 0.0
        self.pid = 0
        self.secret = b""
        # Told when it ends; and of a server connection that still works for it then.
        self.on_end: Callable[[SessionState], None] | None = None
        self.on_abandon: Callable[[Server], None] | None = None

    @property
    def may_write(self) -> bool:
        """Tell whether the key may write at all; else READ ONLY transactions keep it from that."""
        return self.key.can_write or self.key.is_admin

    def go_on(self, now: float) -> None:
        """Work on what was kept while the session waited."""
        raise AssertionError

    def filled(self, server: Server, now: float) -> None:
        """Keep the answer that has come to its end."""
        raise AssertionError

    def take_down(self, data: bytes) -> None:
        """Take down a piece of the answer that is to be kept."""
        raise AssertionError

    def spoil(self) -> None:
        """Keep nothing of the answer that is under way."""
        raise AssertionError

    def changes_end(self, now: float) -> None:
        """Drop the results of what the transaction has changed: it has ended."""
        raise AssertionError

    def changes_may_end(self) -> None:
        """Drop the results of what the transaction has changed: nobody will see its end."""
        raise AssertionError

    def note_usage(self) -> None:
        """Add what the session did since the last time to its key's usage."""
        uses = self.uses
        if uses > 0:
            self.uses = 0
            database = self.database
            database.usage.add(self.key.id, uses, self.active_at + database.wall_offset)

    def forward(self, data: bytes) -> None:
        """Send bytes to the client."""
        if self.filling is not None:
            self.take_down(data)
        if not self.ended:
            self.outlet.write(data)

    def lost(self, error: ClientError) -> None:
        """End the session: its server connection is gone in the middle of its work."""
        server = self.server
        if server is not None and server.replies.head is not None:
            if server.replies.parted:
                said = server.replies.last_error
                self.record_unanswered(server, sqlstate(said, 0, len(said)), b"")
            else:
                self.record_unanswered(server, error.sqlstate.encode(), error.code.encode())
        self.server = None
        self._release_pin()
        if server is not None and (server.replies.midway or server.replies.parted):
            self._end()
            return
        self.fatal(error)

    def cancel(self) -> Server | None:
        """Cancel what the session does; returns the server connection that a CancelRequest has to reach."""
        if self.waits & FOR_SERVER != 0:
            self._leave_queue()
            self.refused(QueryCancelled())
            return None
        return self.server

    def overdue(self, now: float, limit: float) -> Server | None:
        """Return the server connection whose statement has run for more than `limit` seconds (0 for no limit).

        What the server answers to the cancel that the caller sends becomes the proxy's own error.
        """
        server = self.server
        if limit <= 0.0 or server is None:
            return None
        statement = head = server.replies.head
        while statement is not None and statement.sent_at == 0.0:
            # A Parse or Bind in front may be what takes the time: it waits for locks too.
            statement = statement.next
        if statement is not self.watched:
            # What was pipelined behind another statement began when that one ended, at the last look at the earliest.
            began_behind = self.watched is not None
            self.watched = statement
            if statement is not None:
                since = statement.sent_at
                self.watched_since = self.busy_at if began_behind and self.busy_at > since else since
        if statement is None or head is None:
            return None
        self.busy_at = now
        if now - self.watched_since <= limit or statement.cancelled_as:
            return None
        together = _answered_together(head)
        if now - self.watched_since <= limit * len(together):
            return None
        told = error_response(QueryTimeout(extra=f"query_timeout={limit:g}s"))
        reply: Reply | None = head
        while reply is not None:
            # A Parse or Bind between them may be what waits.
            reply.cancelled_as = told
            reply = reply.next if reply is not together[-1] else None
        return server

    def defies(self, now: float, limit: float) -> bool:
        """Tell whether the statement that `overdue` had cancelled has not ended: the server is to be left by force."""
        statement = self.watched
        if limit <= 0.0 or statement is None or not statement.cancelled_as or self.server is None:
            return False
        since = self.watched_since + CANCEL_PATIENCE
        return now - since > limit and now - since > limit * len(_answered_together(statement))

    def stalled(self, now: float, limit: float) -> bool:
        """Tell whether an open transaction has stood idle for more than `limit` seconds (0 for no limit)."""
        server = self.server
        # Behind an error in the extended protocol the server waits for a Sync, in no transaction perhaps.
        skips = server is not None and server.replies.skipping
        if limit <= 0.0 or not (self.in_transaction or self.awaits_sync or skips):
            return False
        if server is None:
            return now - self.active_at > limit and self.held_unit is None
        if server.replies.head is not None:
            return False
        return now - self.active_at > limit and now - server.last_byte_at > limit

    def silent(self, now: float, limit: float) -> bool:
        """Tell whether a session outside a transaction has asked nothing for `limit` seconds (0 for no limit)."""
        if limit <= 0.0:
            return False
        server = self.server
        busy = self.in_transaction or self.awaits_sync or self.held_unit is not None or bool(self.pending)
        if busy or (server is not None and not server.replies.empty):
            self.busy_at = now
        return now - self.active_at > limit and now - self.busy_at > limit

    def idle(self) -> bool:
        """Tell whether the session has nothing under way, so that a drain may end it."""
        server = self.server
        if server is not None and (
            not (self.pinned or self.database.session_mode) or self.awaits_sync or not server.replies.empty
        ):
            return False
        return self.held_unit is None and not self.pending and not self.in_transaction

    def fatal(self, error: ClientError) -> None:
        """Tell the client why, and end the session; within a row nothing can be told, for it would be data there."""
        if self.ended:
            return
        server = self.server
        if server is None or not server.replies.midway:
            self.outlet.write(error_response(error, True))
        if server is not None and server.replies.head is not None:
            self.record_unanswered(server, error.sqlstate.encode(), error.code.encode())
        self._end()

    def record_unanswered(self, server: Server, sqlstate: bytes, code: bytes) -> None:
        """Record the statements that `server` will not have answered; whoever ends a session by itself says why."""
        raise AssertionError

    def _terminate(self, error: ClientError | None = None) -> None:
        """End in good order: what stands before the Terminate completes, what stands behind it is dropped.

        With `error` the client is told that in its turn.
        """
        server = self.server
        if server is not None and server.replies.copying and error is None:
            # The server ends the connection with its own words: more data would have had to come.
            self.ending = True
            server.outlet.write(TERMINATE)
        elif (
            server is not None
            and server.replies.head is not None
            and not server.replies.copying
            and (not self.awaits_sync or self.query_is_last)
        ):
            self.ending = True
            self.last_words = error
            self._pause_reading()
        elif error is not None:
            self.fatal(error)
        else:
            self._end()

    def _end(self) -> None:
        """Close the client's connection and leave the server's in order."""
        if self.ended:
            return
        self.ended = True
        self.note_usage()
        self.transport.close()
        if self.waits & FOR_SERVER != 0:
            self._leave_queue()
        self.held_unit = None
        self.pending = b""
        if self.filling is not None:
            self.spoil()
        if self.changed:
            self.changes_may_end()
        server = self.server
        self.server = None
        if server is not None and server.replies.head is not None:
            self.server = server
            self.record_unanswered(server, b"08006", b"CLIENT_GONE")
            self.server = None
        was_pinned = self.pinned
        self._release_pin()
        if server is not None:
            self._hand_over(server, was_pinned)
        if self.on_end is not None:
            self.on_end(self)

    def _leave_queue(self) -> None:
        """Wait for a server connection no longer: neither in a pool, nor for a host, nor for another's answer."""
        if self.awaiting is not None:
            self.awaiting.waiters.remove(self)
            self.awaiting = None
        if self.pool is not None:
            self.pool.leave(self)
        self.database.cluster.leave(self)

    def _hand_over(self, server: Server, was_pinned: str) -> None:
        """Give a connection back from a session that is gone: rolled back and reset, or closed."""
        pool = self.pool
        now = time.monotonic()
        server.resume_reading()
        if pool is not None and self.look is not None and server.replies.length == 1:
            # All that is owed is the answer to a question of the proxy's own.
            pool.roll_back(server, now)
            return
        if pool is None or not server.replies.empty or self.awaits_sync or self.stream_left > 0:
            if self.on_abandon is not None and not server.replies.empty:
                self.on_abandon(server)
            server.fail(UpstreamUnavailable("its client is gone"))
            return
        if was_pinned:
            server.unclean = was_pinned
        elif self.database.session_mode:
            server.unclean = "session mode"
        if server.replies.status != STATUS_IDLE:
            pool.roll_back(server, now)
        else:
            pool.give_back(server, now)

    def _release_pin(self) -> None:
        if self.pinned:
            self.pinned = ""
            self.pins = {}
            if self.pool is not None:
                self.pool.pinned -= 1

    def _pause_reading(self) -> None:
        if not self.reading_paused:
            self.reading_paused = True
            self.transport.pause_reading()


def _answered_together(head: Reply) -> list[Reply]:
    """Return the statements from `head` on up to the next Sync, or the one that `head` is a part of.

    PostgreSQL sends their answers when it comes to the Sync: which of them is at work can't be told before.
    """
    together: list[Reply] = []
    reply: Reply | None = head
    while reply is not None:
        if reply.sent_at != 0.0:
            together.append(reply)
        if together and (reply.kind == SYNC or reply.kind == QUERY or reply.kind == SINGLE):
            break
        reply = reply.next
    return together
