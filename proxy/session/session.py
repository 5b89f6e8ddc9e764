"""A client's session after its login: the recipe by which each statement is answered.

    bytes → unit → intent → permission → rate limit → target → server connection → one write
    replies → client; ReadyForQuery `I` → connection back to its pool, record, counters

Nothing here awaits. A session that has to wait (for a server connection, for its client to read, for a server
to take more) keeps what came in and reads no further; whoever ends the wait calls back.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Final, final

from librt.strings import read_i32_be
from mypy_extensions import i64

from proxy.auth.key import Key
from proxy.auth.ratelimit import TokenBucket
from proxy.errors import (
    ClientError,
    FeatureNotSupported,
    InsufficientPermissions,
    InvalidParameter,
    PoolExhausted,
    ProtocolViolation,
    QueryCancelled,
    QueryTimeout,
    RateLimitExceeded,
    UpstreamUnavailable,
)
from proxy.observe.record import route_part
from proxy.query.intent import READ, Intent
from proxy.query.parameters import Profile
from proxy.query.prepared import Statement
from proxy.query.route import Route, choose, pool_problem, refusal
from proxy.session.collect import ClientStatements, read_message
from proxy.session.database import Database
from proxy.session.sending import UNNAMED, Writer, undo, write_prelude, write_unit
from proxy.session.settings import default_for, read_back_query, readable, settings_for
from proxy.session.unit import MAX_BYTES, Message, Unit
from proxy.transport.outlet import Outlet
from proxy.upstream.errand import Rollback
from proxy.upstream.pool import Pool
from proxy.upstream.server import Borrower, Server
from proxy.wire.codes import (
    FAILED_TRANSACTION,
    FE_BIND,
    FE_COPY_DATA,
    FE_COPY_DONE,
    FE_COPY_FAIL,
    FE_EXECUTE,
    FE_FLUSH,
    FE_FUNCTION_CALL,
    FE_PARSE,
    FE_PASSWORD,
    FE_QUERY,
    FE_SYNC,
    FE_TERMINATE,
    HEADER,
    IN_TRANSACTION,
    MAX_HELD,
    MAX_MESSAGE,
    MAX_SMALL_MESSAGE,
)
from proxy.wire.codes import IDLE as STATUS_IDLE
from proxy.wire.messages import (
    PARSE_COMPLETE,
    READY_FAILED,
    READY_IDLE,
    command_complete,
    error_fields,
    error_response,
    first_columns,
    ready,
)
from proxy.wire.replies import CLOSE, COPY_END, FORWARD, PARSE, QUERY, SKIP, Reply

log = logging.getLogger(__name__)

# What a session waits for, as bits.
_FOR_SERVER: Final[i64] = 1  # a server connection
_FOR_IDLE: Final[i64] = 2  # the end of what is under way, to change to another connection
_FOR_CLIENT: Final[i64] = 4  # the client to read
_FOR_SOCKET: Final[i64] = 8  # the server to read
_FOR_REPLIES: Final[i64] = 16  # the reply queue to become shorter
_FOR_READ_BACK: Final[i64] = 32  # the values of settings that the client changed

MAX_REPLIES: Final = 10_000
"""Answers that one session may be owed before its input waits; an entry takes some 200 bytes."""

MAX_PENDING: Final = 65_536
"""Input that is kept while a session waits, before its socket is no longer read."""

_PLAN_CHANGED: Final = b"0A000"

_NOW: Final = 1e-9
"""A time to retire at that has always come."""

MAX_PARSE: Final = 16 * 1024 * 1024
"""A Parse is held whole, because it may have to be sent again; a longer text fits a simple query."""

# What a server reports of itself and of the pool's login, which changes with routing and is none of a client's.
_HIDDEN: Final = frozenset(
    [b"in_hot_standby", b"default_transaction_read_only", b"session_authorization", b"is_superuser"]
)


@final
class Session(Borrower):
    """One client; a transport's protocol from its login on."""

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
        self.transport: asyncio.Transport = transport
        self.outlet = Outlet(transport, sock)
        self.key = key
        # In claims as it stands, and as the label of server connections.
        self.identity = who
        self.log_part = log_part
        self.bucket: TokenBucket | None = bucket
        self.asked_pool = asked_pool
        self.started_pool = asked_pool
        self.startup_profile = profile
        self.profile = profile
        self.statements = ClientStatements()
        self.reported: dict[bytes, bytes] = {}
        # The server connection it holds, the pool it waits at, and why it keeps its connection ("" if not).
        self.server: Server | None = None
        self.pool: Pool | None = None
        self.pinned: str = ""
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
        self.in_transaction = False
        # Something was sent whose Sync has not come yet. A Query behind it ends that too, unless the server skips
        # it because of an error; which of the two, only its ReadyForQuery tells.
        self.awaits_sync = False
        self.query_is_last = False
        # An error was answered without a server; what follows is dropped up to Sync.
        self.skips_to_sync = False
        self.prelude_under_way = False
        self.wrote = False
        self.last_write: float = 0.0
        self.touched: dict[str, bool] = {}
        self.read_back_row: list[bytes | None] = []
        self.ending = False
        self.ended = False
        self.waiting_since: float = 0.0
        self.active_at: float = 0.0
        self.pid = 0
        self.secret = b""
        # Told when it ends; and of a server connection that still works for it then.
        self.on_end: Callable[[Session], None] | None = None
        self.on_abandon: Callable[[Server], None] | None = None

    # -- protocol methods, called by the event loop

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        if self.ended or self.ending:
            return
        self.active_at = time.monotonic()
        if self.waits != 0:
            self.pending += data
            if len(self.pending) > MAX_PENDING:
                self._pause_reading()
            return
        if self.pending:
            data = self.pending + data
            self.pending = b""
        self._feed(data, self.active_at)

    def eof_received(self) -> bool:
        """Let the transport close: a client that stops sending is gone."""
        return False

    def connection_lost(self, failure: Exception | None) -> None:
        """Clean up behind a client that is gone."""
        self._end()

    def pause_writing(self) -> None:
        """Learn that the client does not read as fast as its answers come."""
        self.waits |= _FOR_CLIENT
        server = self.server
        if server is not None:
            server.pause_reading()

    def resume_writing(self) -> None:
        """Learn that the client reads again."""
        self.waits &= ~_FOR_CLIENT
        server = self.server
        if server is not None:
            server.resume_reading()
        self._go_on(time.monotonic())

    # -- input

    def _feed(self, data: bytes, now: float) -> None:
        """Work through the client's messages; what cannot be worked on yet stays in `pending`."""
        try:
            pos = self._messages(data, now)
        except ProtocolViolation as error:
            self.fatal(error)
            return
        if not self.ended and pos < len(data):
            # A message that was put behind stands before what came after it.
            self.pending += data[pos:]
            if self.waits != 0 and len(self.pending) > MAX_PENDING:
                self._pause_reading()

    def _messages(self, data: bytes, now: float) -> i64:
        """Work through whole messages; returns how many bytes are done with."""
        pos: i64 = 0
        n: i64 = len(data)
        while pos < n and self.waits == 0 and not self.ended:
            if self.stream_left > 0:
                take: i64 = self.stream_left if self.stream_left < n - pos else n - pos
                self.stream_left -= take
                if self.stream_to_server and self.server is not None:
                    self.server.outlet.write(data[pos : pos + take])
                pos += take
                if self.stream_left == 0 and self.stream_to_server:
                    self._streamed(now)
                continue
            if n - pos < HEADER:
                break
            kind: i64 = data[pos]
            length: i64 = i64(read_i32_be(data, pos + 1))
            if length < 4 or length > MAX_MESSAGE:
                raise ProtocolViolation("invalid message length")
            end: i64 = pos + 1 + length
            if end > n:
                if length <= MAX_HELD or not self._can_start(kind, length, data, pos):
                    break
                self.stream_left = end - n
                self.stream_to_server = True
            if kind == FE_QUERY and not self.skips_to_sync:
                self._query(data, pos, end, now)
            elif kind == FE_COPY_DATA or kind == FE_COPY_DONE or kind == FE_COPY_FAIL:
                self._copy(kind, data, pos, end, now)
            elif kind == FE_TERMINATE:
                self._terminate()
                return n
            elif self.skips_to_sync:
                self.stream_to_server = False
                if kind == FE_SYNC:
                    self.skips_to_sync = False
                    self.forward(READY_FAILED if self.in_transaction else READY_IDLE)
            else:
                self._extended(kind, data, pos, end, length, now)
            pos = end if end < n else n
        return pos

    def _streamed(self, now: float) -> None:
        """Go on after a long message whose answer came before its end: a COPY that failed in the middle."""
        server = self.server
        if server is not None and server.replies.head is None and not self.awaits_sync:
            self.ready(now)

    def _can_start(self, kind: i64, length: i64, data: bytes, pos: i64) -> bool:
        """Tell whether a long message can be worked on before all of it is here."""
        available: i64 = len(data) - pos
        if kind == FE_COPY_DATA:
            return True
        if kind == FE_QUERY:
            return available > self.database.max_parse_bytes + HEADER
        if kind == FE_BIND:
            portal_end: i64 = data.find(b"\0", pos + HEADER)
            if portal_end >= 0 and data.find(b"\0", portal_end + 1) >= 0:
                return True
            if available > MAX_HELD:
                raise ProtocolViolation("invalid Bind message")
            return False
        if kind == FE_PARSE and length <= MAX_PARSE:
            return False
        if self.skips_to_sync and kind == FE_PARSE:
            return True
        raise ProtocolViolation("message is too long for its type")

    def _query(self, data: bytes, start: i64, end: i64, now: float) -> None:
        """Take a simple query."""
        n: i64 = len(data)
        if end <= n:
            if data[end - 1] != 0 or end - start < HEADER + 1:
                raise ProtocolViolation("invalid string in message")
            sql = data[start + HEADER : end - 1]
            if 0 in sql:
                raise ProtocolViolation("invalid string in message")
            intent = self.database.intents.lookup(sql)
        else:
            # Longer than what is parsed; the rest streams behind.
            intent = self.database.intents.lookup_prefix(data[start + HEADER : n], end - start - HEADER - 1)
        message = Message(FE_QUERY, QUERY, data, start, end, None)
        message.intent = intent
        message.queued_at = now
        if not self._finish_unit(data, start, end, now):
            return
        unit = self.unit
        if intent.kind != READ or intent.refused or self.bucket is not None:
            if intent.sets_pool or intent.deallocates:
                if self._answer(intent, message):
                    return
            if message.error is None:
                message.error = self._admit(intent, now)
        self.statements.unnamed = None
        unit.uses(intent)
        unit.ended_by = FE_QUERY
        unit.add(message)
        self._dispatch(unit, now)

    def _finish_unit(self, data: bytes, start: i64, end: i64, now: float) -> bool:
        """Send an unfinished unit of extended messages, behind which another kind of message came.

        Returns False if that message has to wait, or is skipped because the unit failed.
        """
        if self.unit.first is None:
            return True
        self._dispatch(self.unit, now)
        if self.waits != 0:
            self._put_behind(data, start, end)
            return False
        self.stream_to_server = not self.skips_to_sync
        return not self.skips_to_sync

    def _put_behind(self, data: bytes, start: i64, end: i64) -> None:
        """Keep a message that came behind an unfinished unit which waits."""
        n: i64 = len(data)
        self.stream_left = 0
        self.pending = data[start : end if end < n else n]

    def _extended(self, kind: i64, data: bytes, start: i64, end: i64, length: i64, now: float) -> None:
        """Take a message of the extended protocol."""
        database = self.database
        if kind == FE_SYNC or kind == FE_FLUSH:
            if length != 4:
                raise ProtocolViolation("invalid message length")
        elif kind == FE_FUNCTION_CALL:
            self._refuse_function_call(data, start, end, now)
            return
        elif kind == FE_PASSWORD:
            raise ProtocolViolation("unexpected password message")
        elif kind != FE_BIND and kind != FE_PARSE and length > MAX_SMALL_MESSAGE:
            raise ProtocolViolation("invalid message length")
        message = read_message(self.statements, database.intents, database.statements, kind, data, start, end)
        unit = self.unit
        statement = message.statement
        if statement is not None and (kind == FE_BIND or kind == FE_PARSE):
            unit.uses(statement.intent)
        if kind == FE_EXECUTE:
            message.queued_at = now
            intent = message.intent
            if intent is not None and unit.refused is None:
                if intent.kind != READ or intent.refused or self.bucket is not None:
                    message.error = self._admit(intent, now)
        elif kind == FE_SYNC or kind == FE_FLUSH:
            unit.ended_by = kind
        unit.add(message)
        if unit.ended_by != 0 or self.stream_left > 0 or unit.bytes > MAX_BYTES:
            self._dispatch(unit, now)

    def _copy(self, kind: i64, data: bytes, start: i64, end: i64, now: float) -> None:
        """Pass COPY data on; without a server connection there is no COPY, and PostgreSQL ignores it then."""
        # It may belong to an Execute behind which no Sync or Flush came.
        if not self._finish_unit(data, start, end, now):
            return
        server = self.server
        if server is None:
            self.stream_to_server = False
            return
        if kind != FE_COPY_DATA and server.replies.head is not None:
            server.replies.push(Reply(COPY_END, FORWARD))
        n: i64 = len(data)
        server.outlet.write(data if start == 0 and end >= n else data[start:end])

    # -- permission, rate limit, what the proxy answers by itself

    def _admit(self, intent: Intent, now: float) -> ClientError | None:
        """Return why a statement may not run, None where it may."""
        key = self.key
        reason = refusal(intent, key.can_write, key.is_admin)
        if reason:
            error: ClientError = InsufficientPermissions(reason)
            self._denied(intent, error)
            return error
        bucket = self.bucket
        if bucket is not None:
            wait = bucket.take(now)
            if wait > 0.0:
                error = RateLimitExceeded(
                    extra=f"limit={key.rate_limit_per_minute} per minute",
                    hint=f"Try again in {wait:.1f} seconds.",
                )
                self._denied(intent, error)
                return error
        return None

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

    def _answer(self, intent: Intent, message: Message) -> bool:
        """Answer a statement that no server is to see, in its turn; False where it is not one."""
        named = self.statements.named
        name = intent.deallocates.encode()
        if not intent.sets_pool and (intent.statements != 1 or (name != b"all" and name not in named)):
            return False
        server = self.server
        if server is not None and server.replies.head is not None:
            self.waits |= _FOR_IDLE
            self._put_behind(message.data, message.start, message.end)
            return True
        if self.in_transaction and server is not None and server.replies.status == FAILED_TRANSACTION:
            return False
        if intent.sets_pool:
            problem = pool_problem(intent.pool, self.key.is_admin)
            if problem:
                message.error = InvalidParameter(problem)
                return False
            self._set_pool(intent)
            return True
        if name == b"all":
            self.statements.named = {}
        else:
            del named[name]
        tag = b"DEALLOCATE ALL" if name == b"all" else b"DEALLOCATE"
        self.forward(command_complete(tag) + ready(IN_TRANSACTION if self.in_transaction else STATUS_IDLE))
        return True

    def _set_pool(self, intent: Intent) -> None:
        """Answer SET sluice.pool."""
        pool = intent.pool
        self.asked_pool = pool or self.started_pool
        status = IN_TRANSACTION if self.in_transaction else STATUS_IDLE
        self.forward(command_complete(b"SET" if pool else b"RESET") + ready(status))

    def _refuse_function_call(self, data: bytes, start: i64, end: i64, now: float) -> None:
        """Refuse a FunctionCall in its turn; like a Query it is answered with a ReadyForQuery."""
        if not self._finish_unit(data, start, end, now):
            return
        unit = self.unit
        message = Message(FE_QUERY, QUERY, data, start, end, None)
        message.error = FeatureNotSupported(
            "the function call sub-protocol is not supported", hint="Use SELECT."
        )
        unit.ended_by = FE_QUERY
        unit.add(message)
        self._dispatch(unit, now)

    def _fail_unit(self, error: ClientError, ends: bool) -> None:
        """Answer a unit with `error` where no server connection is involved."""
        if ends:
            self.forward(error_response(error) + (READY_FAILED if self.in_transaction else READY_IDLE))
        else:
            self.forward(error_response(error))
            self.skips_to_sync = True

    # -- the way to a server

    def _dispatch(self, unit: Unit, now: float) -> None:
        """Send `unit` to the server connection that it belongs to, or let it wait for one."""
        if unit is self.unit:
            self.unit = self.spare
            self.spare = unit
        server = self.server
        if server is None:
            refused = unit.refused
            if refused is not None and not unit.runs_before_refused:
                assert refused.error is not None
                self._answer_unsent(unit, refused.error)
                return
            if unit.ended_by == FE_SYNC and self._only_prepares(unit):
                return
            if unit.length == 1 and unit.ended_by != FE_QUERY and unit.ended_by != 0:
                # A Sync or Flush alone: nothing is outstanding.
                if unit.ended_by == FE_SYNC:
                    self.forward(READY_IDLE)
                unit.clear()
                return
        elif not (self.in_transaction or self.pinned or self.awaits_sync):
            # What runs no statement (a Sync alone, behind a COPY) belongs to what is under way.
            if server.replies.head is not None and unit.intent is not None:
                route = self._route_of(unit)
                if not self._fits(route):
                    self.waits |= _FOR_IDLE
                    self.held_unit = unit
                    return
        if server is None:
            self.route = self._route_of(unit)
            server = self._checkout(unit, now)
            if server is None:
                return
        self._send(server, unit, now)

    def _only_prepares(self, unit: Unit) -> bool:
        """Answer a unit that only prepares statements which servers are known to take; False where it is another.

        It needs no server connection then. A client that prepares in a blocking call (pgbench does) would else
        wait for a connection that its own other sessions hold.
        """
        message = unit.first
        while message is not None and message.message_code == FE_PARSE:
            statement = message.statement
            if statement is None or not statement.proven or not message.name:
                return False
            message = message.following
        if message is None or message.message_code != FE_SYNC:
            return False
        self.forward(PARSE_COMPLETE * (unit.length - 1) + READY_IDLE)
        unit.clear()
        return True

    def _route_of(self, unit: Unit) -> Route:
        """Return where `unit` is to go."""
        intent = unit.intent
        key = self.key
        if intent is None:
            intent = self.database.intents.lookup(b"")
        route = choose(intent, key.can_write, key.is_admin, "", self.asked_pool, key.default_pool)
        if route.host_role == "primary":
            return route
        unfinished = unit.ended_by != FE_QUERY and unit.ended_by != FE_SYNC
        if (unfinished and unit.reads_only) or not self.database.routing:
            # More may follow in the same implicit transaction, perhaps a write; or reads are not told apart.
            return choose(
                self.database.unfinished, key.can_write, key.is_admin, "", self.asked_pool, key.default_pool
            )
        return route

    def _fits(self, route: Route) -> bool:
        """Tell whether the connection held is in the pool that `route` asks for, on a host of the right role."""
        pool = self.pool
        return pool is not None and pool.name == route.pool and self.route.host_role == route.host_role

    def _checkout(self, unit: Unit, now: float) -> Server | None:
        """Borrow a server connection; None where the unit has to wait, or was answered with an error."""
        route = self.route
        try:
            after = self.last_write if self.database.read_your_writes else 0.0
            pool = self.database.cluster.pool_for(route.pool, route.host_role == "replica", after)
        except ClientError as error:
            self._unsent(unit, error)
            return None
        for intent in unit.special:
            if intent.pin and not pool.may_pin():
                self._unsent(unit, self._too_many_pins(pool))
                return None
        self.pool = pool
        server = pool.take(self, now)
        if server is None:
            self.held_unit = unit
            self.waits |= _FOR_SERVER
            return None
        self.server = server
        return server

    def _too_many_pins(self, pool: Pool) -> PoolExhausted:
        return PoolExhausted(
            "too many sessions keep their server connection for themselves",
            extra=f"pool={pool.name} pinned={pool.pinned} size={pool.limits.maximum}",
        )

    def _send(self, server: Server, unit: Unit, now: float) -> None:
        """Send `unit`, behind whatever the server connection lacks, in one write."""
        out = self.out
        idle = not (self.in_transaction or self.awaits_sync) and server.replies.head is None
        if idle and (
            now >= server.renew_at or server.label != self.identity or server.profile is not self.profile
        ):
            if not self._prepare(server, unit, out, now):
                return
        sweeps = False
        for intent in unit.special:
            if intent.unclean == "RESET ALL" or intent.unclean == "DISCARD ALL":
                sweeps = True
            error = self._before(server, intent)
            if error is not None:
                first = unit.first
                if first is not None:
                    first.error = error
                break
        was_empty = server.replies.head is None
        if not write_unit(server, unit, out, now, self.in_transaction):
            # The rest of a long message that was not sent is not sent either.
            self.stream_to_server = False
        if not unit.reads_only:
            self.wrote = True
            if unit.begins:
                self.in_transaction = True
            elif unit.ends:
                self.in_transaction = False
        ended = unit.ended_by
        self.query_is_last = ended == FE_QUERY
        if ended != FE_QUERY:
            self.awaits_sync = ended != FE_SYNC
        unit.clear()
        out.write_to(server)
        if was_empty:
            server.replies.start()
        if server.replies.length > MAX_REPLIES:
            self.waits |= _FOR_REPLIES
            server.crowded = True
        if sweeps and not self.awaits_sync:
            # It takes away the identity and what is prepared: what follows needs them again.
            self.waits |= _FOR_IDLE
        if self.waits & _FOR_CLIENT != 0:
            server.pause_reading()

    def _prepare(self, server: Server, unit: Unit, out: Writer, now: float) -> bool:
        """Put the session's identity and parameters in front of the unit.

        Returns False where the connection has to be reset first; the unit then waits for it.
        """
        if server.label != "" and server.label != self.identity:
            raise AssertionError("a server connection under another identity's label was lent")
        database = self.database
        settings = settings_for(server, self.profile, database.profiles.empty)
        if settings is None:
            self._reset_first(server, unit, now)
            return False
        signer = database.signer
        if signer is not None and (now >= server.renew_at or server.label == ""):
            expires = now + database.wall_offset + database.server_offset + database.token_ttl
            claim = signer.sign(self.identity, server.pid, server.login, int(expires))
            settings.append(("sluice.identity", claim))
            server.renew_at = now + database.token_ttl / 2
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
        return True

    def _reset_first(self, server: Server, unit: Unit, now: float) -> None:
        """Have the connection reset: it carries settings whose defaults are not known here."""
        pool = self.pool
        assert pool is not None
        self.server = None
        self.held_unit = unit
        self.waits |= _FOR_SERVER
        self.waiting_since = now
        server.unclean = "settings of another session"
        pool.waiters.append_first(self)
        pool.give_back(server, now)

    def _drop_unit(self, unit: Unit, error: ClientError) -> None:
        """Answer a unit with `error` after its connection was borrowed but before anything was sent."""
        server = self.server
        pool = self.pool
        self.server = None
        if server is not None and pool is not None:
            pool.give_back(server, time.monotonic())
        self._unsent(unit, error)

    def _before(self, server: Server, intent: Intent) -> ClientError | None:
        """Do what a statement other than a plain read asks for before it runs: pin, mark, track."""
        if intent.pin and not self.pinned:
            pool = self.pool
            assert pool is not None
            if not pool.may_pin():
                return self._too_many_pins(pool)
            pool.pinned += 1
            self.pinned = intent.pin
            pool.stats.pins.add(intent.pin)
        if intent.unclean and intent.unclean != "RESET ALL" and intent.unclean != "DISCARD ALL":
            server.unclean = intent.unclean
        if intent.lasting:
            # DISCARD ALL would not take it away.
            server.retire_at = _NOW
        if intent.settings:
            for name in intent.settings:
                self.touched[name] = True
        return None

    # -- a borrower's callbacks

    def granted(self, server: Server) -> None:
        """Go on with the unit that waited for a server connection."""
        self.server = server
        self.waits &= ~_FOR_SERVER
        unit = self.held_unit
        self.held_unit = None
        # It was the server's last answer that made it free: reading the clock again tells nothing new.
        now = server.last_byte_at if server.last_byte_at > self.active_at else self.active_at
        if unit is not None:
            self._send(server, unit, now)
        self._go_on(now)

    def refused(self, error: ClientError) -> None:
        """Answer the unit that waited in vain."""
        self.waits &= ~_FOR_SERVER
        unit = self.held_unit
        self.held_unit = None
        if unit is not None:
            self._unsent(unit, error)
        self._go_on(time.monotonic())

    def forward(self, data: bytes) -> None:
        """Send bytes to the client."""
        if not self.ended:
            self.outlet.write(data)

    def executed(self, reply: Reply) -> None:
        """Record a statement that was answered."""
        if not isinstance(reply, Message):
            return
        intent = reply.intent
        server = self.server
        pool = self.pool
        if server is None or pool is None or intent is None:
            return
        if reply.sqlstate:
            if self.prelude_under_way:
                # What failed may have been the identity's own transaction: it is set again before the next unit.
                server.renew_at = 0.0
            if reply.sqlstate == _PLAN_CHANGED and reply.statement is not None:
                # "cached plan must not change result type": its table has changed since it was parsed here.
                server.outdate(reply.statement)
        else:
            if intent.unclean:
                self._swept(server, intent)
            if reply.statement is not None:
                reply.statement.proven = True
        database = self.database
        route = self.route
        if not route.log_part:
            route.log_part = route_part(route.target, route.reason)
        queued_at = reply.queued_at
        queued_us: i64 = i64((reply.sent_at - queued_at) * 1_000_000.0)
        first_us: i64 = i64((reply.first_at - queued_at) * 1_000_000.0)
        duration_us: i64 = i64((server.last_byte_at - queued_at) * 1_000_000.0)
        pool.stats.statement(
            intent.kind, queued_us, duration_us - queued_us, reply.bytes_in, reply.bytes_out, reply.sqlstate
        )
        database.access.statement(
            self.log_part,
            pool.log_part,
            route.log_part,
            intent,
            queued_at + database.wall_offset,
            queued_us,
            first_us,
            duration_us,
            reply.rows,
            reply.bytes_in,
            reply.bytes_out,
            reply.in_transaction,
            self.pinned != "",
            reply.sqlstate,
            reply.code,
            b"",
        )

    def _swept(self, server: Server, intent: Intent) -> None:
        """Follow a RESET ALL or DISCARD ALL that succeeded."""
        if intent.unclean == "DISCARD ALL":
            label = server.label
            server.forget_session()
            server.label = label
            self.statements = ClientStatements()
            self.profile = self.startup_profile
        elif intent.unclean == "RESET ALL":
            server.renew_at = 0.0
            server.profile = None
            self.profile = self.startup_profile

    def undone(self, reply: Reply) -> None:
        """Take back what a Parse or Close that failed, or was never sent, had changed."""
        server = self.server
        if isinstance(reply, Message):
            if reply.kind == PARSE:
                if reply.error is not None:
                    return
                if not reply.name:
                    self._forget_unnamed()
                    return
                self.statements.named.pop(reply.name, None)
                if reply.prepares and reply.statement is not None and server is not None:
                    server.statements.pop(reply.statement.number, None)
            elif reply.kind == CLOSE and reply.name and reply.statement is not None:
                self.statements.named[reply.name] = reply.statement
            return
        subject = reply.subject
        if subject is UNNAMED:
            self._forget_unnamed()
        elif isinstance(subject, Statement) and server is not None:
            if reply.kind == PARSE:
                server.statements.pop(subject.number, None)
            else:
                # The server has it still: it is closed before it is parsed again.
                server.stale.add(subject.number)

    def _forget_unnamed(self) -> None:
        """Note that the server's unnamed statement is not what it was to become: it is parsed again where needed."""
        if self.server is not None:
            self.server.unnamed = None

    def shows(self, name: bytes, value: bytes) -> bool:
        """Tell whether the client is to see this ParameterStatus: only what changes for itself."""
        if name in _HIDDEN or self.reported.get(name) == value:
            return False
        self.reported[name] = value
        return True

    def row(self, reply: Reply, data: bytes, start: i64, end: i64) -> None:
        """Keep the values that were read back."""
        if reply.subject is self:
            self.read_back_row = first_columns(data, start, end)

    def injected_failed(self, reply: Reply, data: bytes, start: i64, end: i64) -> None:
        """End the session: its identity or parameters could not be set, so nothing may run for it there."""
        if isinstance(reply.subject, Statement) or reply.subject is UNNAMED:
            # A client's statement that no longer parses: its Bind is skipped, and this is the answer.
            if i64(read_i32_be(data, start + 1)) == end - start - 1:
                self.forward(data[start:end])
            else:
                self.forward(error_response(UpstreamUnavailable(error_fields(data, start, end).get("M", ""))))
            return
        reason = error_fields(data, start, end).get("M", "")
        log.error("session %d: the server refused its identity or parameters: %s", self.pid, reason)
        server = self.server
        self.fatal(UpstreamUnavailable("the server refused the session's identity or parameters"))
        if server is not None:
            server.fail(UpstreamUnavailable("prelude failed"))

    def copy_in(self) -> None:
        """Learn that the server expects CopyData: the client's pass straight on."""

    def ready(self, now: float) -> None:
        """Go on after ReadyForQuery, with nothing owed: give the connection back unless it is still needed."""
        server = self.server
        if server is None:
            return
        self.waits &= ~_FOR_REPLIES
        if self.awaits_sync:
            if not self.query_is_last:
                self._go_on(now)
                return
            self.awaits_sync = False
        if self.stream_left > 0 and self.stream_to_server:
            self._go_on(now)
            return
        self.prelude_under_way = False
        if server.replies.status == STATUS_IDLE:
            self.in_transaction = False
            if self.waits & _FOR_READ_BACK != 0:
                self._apply_read_back(server)
            elif self.touched and self._read_back(server):
                return
            statements = self.statements
            if statements.portals or statements.unnamed_portal is not None:
                statements.end_transaction()
            if self.wrote:
                self.wrote = False
                self.last_write = now
            if not self.pinned and not self.database.session_mode:
                pool = self.pool
                self.server = None
                if pool is not None:
                    pool.give_back(server, now)
        else:
            self.in_transaction = True
        if self.ending:
            self._end()
        elif self.waits != 0 or self.pending:
            self.waits &= ~_FOR_IDLE
            self._go_on(now)

    def lost(self, error: ClientError) -> None:
        """End the session: its server connection is gone in the middle of its work."""
        self.server = None
        self._release_pin()
        self.fatal(error)

    def relieved(self) -> None:
        """Go on: the server owes few enough answers again."""
        self.waits &= ~_FOR_REPLIES
        self._go_on(time.monotonic())

    def server_full(self) -> None:
        """Stop reading from the client: the server does not take as much."""
        self.waits |= _FOR_SOCKET

    def server_drained(self) -> None:
        """Go on reading from the client."""
        self.waits &= ~_FOR_SOCKET
        self._go_on(time.monotonic())

    # -- settings that the client changed

    def _read_back(self, server: Server) -> bool:
        """Ask the server what the settings are now that the client has touched; True if it was asked."""
        names = readable(self.touched)
        if not names:
            self.touched = {}
            return False
        server.replies.push(Reply(QUERY, SKIP, self))
        server.outlet.write(read_back_query(names))
        self.waits |= _FOR_READ_BACK
        return True

    def _apply_read_back(self, server: Server) -> None:
        """Make the values that the server reports the session's own."""
        self.waits &= ~_FOR_READ_BACK
        names = readable(self.touched)
        self.touched = {}
        values = dict(self.profile.values)
        for name, value in zip(names, self.read_back_row, strict=False):
            text = value.decode("utf-8", "replace") if value is not None else ""
            if name not in values and text == default_for(server, name):
                continue
            values[name] = text
        self.read_back_row = []
        self.profile = self.database.profiles.of(values)
        server.profile = self.profile

    # -- waiting, ending

    def _go_on(self, now: float) -> None:
        """Work on what was kept while the session waited."""
        if self.waits != 0 or self.ended:
            return
        unit = self.held_unit
        if unit is not None:
            self.held_unit = None
            self._dispatch(unit, now)
            if self.waits != 0:
                return
        if self.pending:
            data = self.pending
            self.pending = b""
            self._feed(data, now)
        if self.reading_paused and self.waits == 0 and not self.ended:
            self.reading_paused = False
            self.transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self.reading_paused:
            self.reading_paused = True
            self.transport.pause_reading()

    def _unsent(self, unit: Unit, error: ClientError) -> None:
        """Answer and record a unit of which nothing could be sent."""
        intent = unit.intent
        if intent is not None:
            self._denied(intent, error)
        self._answer_unsent(unit, error)

    def _answer_unsent(self, unit: Unit, error: ClientError) -> None:
        """Answer a unit of which nothing was sent with `error`, and take back the names that it had prepared."""
        undo(self, unit.first)
        if self.stream_left > 0:
            self.stream_to_server = False
        ends = unit.ended_by == FE_QUERY or unit.ended_by == FE_SYNC
        unit.clear()
        self._fail_unit(error, ends)

    def cancel(self) -> Server | None:
        """Cancel what the session does; returns the server connection that a CancelRequest has to reach."""
        if self.waits & _FOR_SERVER != 0 and self.pool is not None:
            self.pool.leave(self)
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
        head = server.replies.head
        if head is None or head.mode != FORWARD or head.sent_at == 0.0 or now - head.sent_at <= limit:
            return None
        if head.cancelled_as:
            return None
        error = QueryTimeout(extra=f"query_timeout={limit:g}s")
        head.cancelled_as = error_response(error)
        head.code = error.code.encode()
        return server

    def stalled(self, now: float, limit: float) -> bool:
        """Tell whether an open transaction has stood idle for more than `limit` seconds (0 for no limit)."""
        server = self.server
        if limit <= 0.0 or server is None or server.replies.head is not None:
            return False
        if not self.in_transaction and not self.awaits_sync:
            return False
        return now - self.active_at > limit and now - server.last_byte_at > limit

    def idle(self) -> bool:
        """Tell whether the session has nothing under way, so that a drain may end it."""
        return self.server is None and self.held_unit is None and not self.pending

    def fatal(self, error: ClientError) -> None:
        """Tell the client why, and end the session."""
        if self.ended:
            return
        self.outlet.write(error_response(error, True))
        self._end()

    def _terminate(self) -> None:
        """End in good order: what stands before the Terminate completes, what stands behind it is dropped."""
        server = self.server
        if (
            server is not None
            and server.replies.head is not None
            and (not self.awaits_sync or self.query_is_last)
        ):
            self.ending = True
            self._pause_reading()
            return
        self._end()

    def _end(self) -> None:
        """Close the client's connection and leave the server's in order."""
        if self.ended:
            return
        self.ended = True
        self.transport.close()
        if self.waits & _FOR_SERVER != 0 and self.pool is not None:
            self.pool.leave(self)
        self.held_unit = None
        self.pending = b""
        server = self.server
        self.server = None
        was_pinned = self.pinned
        self._release_pin()
        if server is not None:
            self._hand_over(server, was_pinned)
        if self.on_end is not None:
            self.on_end(self)

    def _hand_over(self, server: Server, was_pinned: str) -> None:
        """Give a connection back from a session that is gone: rolled back and reset, or closed."""
        pool = self.pool
        now = time.monotonic()
        server.resume_reading()
        if pool is None or not server.replies.empty or self.awaits_sync or self.stream_left > 0:
            if self.on_abandon is not None and not server.replies.empty:
                self.on_abandon(server)
            server.fail(UpstreamUnavailable("its client is gone"))
            return
        if was_pinned:
            server.unclean = was_pinned
        if server.replies.status != STATUS_IDLE:
            Rollback(server, pool.give_back).start()
        else:
            pool.give_back(server, now)

    def _release_pin(self) -> None:
        if self.pinned:
            self.pinned = ""
            if self.pool is not None:
                self.pool.pinned -= 1
