"""The reply queue: what a server still owes, in order (`wire/reply`), matched with what it sends.

After an ErrorResponse in the extended protocol the server discards everything up to the next Sync, and the
queue does so with it (manual, "Extended Query").
"""

from __future__ import annotations

from typing import Final, final

from librt.strings import read_i32_be
from mypy_extensions import i64

from proxy.errors import ProtocolViolation, QueryTimeout, ServerEnds
from proxy.wire.codes import (
    BE_BIND_COMPLETE,
    BE_CLOSE_COMPLETE,
    BE_COMMAND_COMPLETE,
    BE_COPY_BOTH,
    BE_COPY_DATA,
    BE_COPY_DONE,
    BE_COPY_IN,
    BE_COPY_OUT,
    BE_DATA_ROW,
    BE_EMPTY_QUERY,
    BE_ERROR,
    BE_NO_DATA,
    BE_NOTICE,
    BE_NOTIFICATION,
    BE_PARAMETER_DESCRIPTION,
    BE_PARAMETER_STATUS,
    BE_PARSE_COMPLETE,
    BE_PORTAL_SUSPENDED,
    BE_READY,
    BE_ROW_DESCRIPTION,
    FAILED_TRANSACTION,
    HEADER,
    IDLE,
    IN_TRANSACTION,
    MAX_HELD,
    MAX_MESSAGE,
)
from proxy.wire.messages import PARSE_COMPLETE, affected_rows, parameter_status, parameters_of, sqlstate
from proxy.wire.reply import (
    BIND,
    CLOSE,
    COPY_END,
    DESCRIBE,
    EXECUTE,
    FAKE,
    FORWARD,
    PARSE,
    QUERY,
    REPLACE,
    SINGLE,
    SKIP,
    SYNC,
    Peer,
    Reply,
)

MAX_PARAMETERS: Final = 100
"""Parameters that a server may report of itself; PostgreSQL 18 reports 16, extensions may mark more of their own."""

_FATAL: Final = b"\0VFATAL\0"
_PANIC: Final = b"\0VPANIC\0"

_CANCELLED: Final = b"57014"
_QUERY_TIMEOUT: Final = QueryTimeout.code.encode()

_ERROR_PREFIX: Final = 1024
"""Bytes of a very long ErrorResponse that are waited for before it streams; severity and SQLSTATE come first."""

_MAX_DESCRIPTION: Final = 1_048_576
"""A description is held whole: 1,664 columns or 65,535 parameters, PostgreSQL's limits, take 0.3 MB."""


@final
class ReplyQueue:
    """Matches a server's bytes with what it owes. No I/O: bytes in, calls of the peer out."""

    def __init__(self) -> None:
        self.head: Reply | None = None
        self.tail: Reply | None = None
        self.length: i64 = 0
        self.peer: Peer | None = None
        # What the server last reported of itself.
        self.parameters: dict[bytes, bytes] = {}
        # The last transaction status of a ReadyForQuery.
        self.status: i64 = 0x49
        # An ErrorResponse that nobody asked for: the server is about to close.
        self.last_error: bytes = b""
        # After an error behind which no Sync is queued yet: the server discards what is sent until one.
        self.skipping: bool = False
        # The head is a COPY whose data comes from the client and has not ended.
        self.copying: bool = False
        # Something was forwarded since the peer last took this back; and the server's last words were.
        self.told: bool = False
        self.parted: bool = False
        # Nothing is forwarded before the first row, or the end of the statement: should that be refused, another
        # server can be asked as if nothing had happened. What has come meanwhile.
        self.tentative: bool = False
        self._kept_back: bytes = b""
        # The read at hand had a ReadyForQuery behind which nothing was owed.
        self.became_ready: bool = False
        # An incomplete message at the end of the last read, and a long one that is passing through.
        self._held: bytes = b""
        self._body_left: i64 = 0
        self._body_forward: bool = False
        # The client has got the beginning of a message and not its end: a read that breaks the protocol behind that
        # end is not forwarded.
        self._in_body: bool = False
        # Positions in the read at hand: what is forwarded next starts at _run, behind what is put in front of it.
        self._data: bytes = b""
        self._in_front: bytes = b""
        self._run: i64 = 0
        self._base: i64 = 0

    def push(self, reply: Reply) -> None:
        """Append what the server owes for a message that is being sent."""
        if self.skipping:
            if reply.kind != SYNC:
                if self.peer is not None and (reply.kind == PARSE or reply.kind == CLOSE or reply.edited):
                    self.peer.undone(reply, None)
                return
            self.skipping = False
        if self.copying and reply.kind == COPY_END:
            self.copying = False
            if self.head is not None:
                self._swallow(self.head)
        if self.tail is None:
            self.head = reply
            reply.bytes_out = -self._base
        else:
            self.tail.next = reply
        self.tail = reply
        self.length += 1

    @property
    def midway(self) -> bool:
        """Tell whether the client has got the beginning of a message whose end has not come."""
        return self._in_body

    def start(self) -> None:
        """Answer what stands at the head and needs no server; to be called after pushes to an empty queue."""
        self._advance(0, 0.0)

    @property
    def empty(self) -> bool:
        """Tell whether nothing is owed, no message is half received, and the server doesn't wait for a Sync."""
        return self.head is None and self._body_left == 0 and not self._held and not self.skipping

    def scan(self, data: bytes, now: float) -> bool:
        """Take the next bytes from the server, at time `now`.

        Returns True if they end in a ReadyForQuery after which nothing is owed; `status` then tells the
        transaction's state. Raises ProtocolViolation for what no PostgreSQL sends, and ServerEnds at a FATAL error;
        `parted` then tells that it was forwarded. One behind everything that was owed is left to the caller, who
        finds it in `last_error`: perhaps it is nobody's any more.
        """
        if self._held:
            data = self._held + data
            self._held = b""
        n: i64 = len(data)
        self._data = data
        self._run = 0
        pos: i64 = 0
        rows = False
        self.became_ready = False
        head = self.head
        if head is not None and head.first_at == 0.0:
            head.first_at = now
        if self._body_left > 0:
            pos = n if self._body_left > n else self._body_left
            self._body_left -= pos
            if not self._body_forward:
                self._run = pos
        while n - pos >= HEADER:
            kind: i64 = data[pos]
            length: i64 = i64(read_i32_be(data, pos + 1))
            if length < 4 or length > MAX_MESSAGE:
                raise ProtocolViolation("a server sent a message of impossible length")
            end: i64 = pos + 1 + length
            if kind == BE_DATA_ROW or kind == BE_COPY_DATA:
                head = self.head
                if head is None:
                    raise ProtocolViolation("a server sent rows that nobody asked for")
                if head.mode == FORWARD:
                    rows = True
                    if end > n:
                        self._body_left = end - n
                        self._body_forward = True
                        pos = n
                        break
                else:
                    if length > MAX_HELD:
                        raise ProtocolViolation("a server answered the proxy's own statement at length")
                    if end > n:
                        break
                    if head.mode == SKIP and self.peer is not None:
                        self.peer.row(head, data, pos, end)
                    self._run = end
                pos = end
                continue
            streams = end > n
            if streams:
                if not self._may_stream(kind, length, n - pos):
                    break
                head = self.head
                self._body_forward = head is None or head.mode == FORWARD
            if kind == BE_READY:
                if length != 5:
                    raise ProtocolViolation("a server sent a malformed ReadyForQuery")
                status: i64 = data[pos + 5]
                if status != IDLE and status != IN_TRANSACTION and status != FAILED_TRANSACTION:
                    raise ProtocolViolation("a server sent a ReadyForQuery of no known status")
                self.status = status
                self.became_ready = self._ready(pos, end, now)
            else:
                self._message(kind, pos, end, now)
            if streams:
                self._body_left = end - n
                pos = n
                break
            pos = end
        if self._run < pos:
            self._forward(pos)
        if self.tentative and (rows or self._body_left > 0 or len(self._kept_back) > MAX_HELD):
            self.settle()
        self._in_body = self._body_left > 0 and self._body_forward
        if pos < n:
            self._held = data[pos:]
            if self.head is None:
                kind = data[pos]
                if (
                    kind != BE_NOTICE
                    and kind != BE_PARAMETER_STATUS
                    and kind != BE_NOTIFICATION
                    and kind != BE_ERROR
                ):
                    # The other half of it would reach whoever has the connection next.
                    raise ProtocolViolation("a server began an answer that nobody asked for")
        self._base += pos
        self._data = b""
        return self.became_ready and self.head is None and self._body_left == 0

    def _may_stream(self, kind: i64, length: i64, available: i64) -> bool:
        """Tell whether an incomplete message is acted on now; otherwise the rest is waited for."""
        if length <= MAX_HELD:
            return False
        if self.head is None:
            raise ProtocolViolation("a server sent a long message that nobody asked for")
        if kind == BE_ERROR or kind == BE_NOTICE:
            return available >= _ERROR_PREFIX
        if (kind == BE_ROW_DESCRIPTION or kind == BE_PARAMETER_DESCRIPTION) and length <= _MAX_DESCRIPTION:
            return False
        raise ProtocolViolation("a server sent an oversized message")

    def _forward(self, end: i64) -> None:
        """Hand the client what stands between the last cut and `end`."""
        peer = self.peer
        data = self._data
        n: i64 = len(data)
        if self._run != 0 or end != n:
            data = data[self._run : end]
        if len(self._in_front) > 0:
            data = self._in_front + data
            self._in_front = b""
        if self.tentative:
            self._kept_back += data
        elif peer is not None:
            self.told = True
            peer.forward(data)
        self._run = end

    def _tell(self, message: bytes) -> None:
        """Hand the client a message that stands for one of the server's, or in between."""
        if self.tentative:
            self._kept_back += message
        elif self.peer is not None:
            self.told = True
            self.peer.forward(message)

    def settle(self) -> None:
        """Hand the client what was kept back: no other server will be asked."""
        if not self.tentative:
            return
        self.tentative = False
        kept = self._kept_back
        if kept:
            self._kept_back = b""
            self._tell(kept)

    def _cut(self, start: i64, end: i64) -> None:
        """Leave the message at start:end out of what is forwarded."""
        if self._run < start:
            self._forward(start)
        self._run = end

    def _ready(self, pos: i64, end: i64, now: float) -> bool:
        head = self.head
        if head is None or (head.kind != QUERY and head.kind != SYNC):
            raise ProtocolViolation("a server sent a ReadyForQuery that nobody asked for")
        if self.tentative and head.mode == FORWARD:
            self.settle()
        if head.mode == SKIP:
            self._cut(pos, end)
        self._complete(head, end, now)
        return self.head is None

    def _complete(self, reply: Reply, end: i64, now: float) -> None:
        """Take the head off the queue, its answer ending at `end`, and see to what follows."""
        if reply.kind == QUERY or reply.kind == EXECUTE:
            if self.tentative and reply.mode == FORWARD:
                self.settle()
            reply.bytes_out += self._base + end
            if self.peer is not None and reply.mode == FORWARD:
                self.peer.executed(reply)
        self._pop()
        self._advance(end, now)

    def _executed(self, single: Reply, end: i64) -> None:
        """Tell how the Execute of a SINGLE came out, the answer to which ends at `end`; its Sync is still owed."""
        if self.tentative:
            self.settle()
        single.bytes_out = single.bytes_out + self._base + end if single.bound else 0
        peer = self.peer
        if peer is not None:
            peer.executed(single)
            if single.parsing:
                peer.undone(single, single.next)
        single.parsing = False
        single.sent_at = 0.0
        single.kind = SYNC

    def _pop(self) -> None:
        head = self.head
        if head is not None:
            self.head = head.next
            head.next = None
            self.length -= 1
            if self.head is None:
                self.tail = None

    def _advance(self, end: i64, now: float) -> None:
        """Serve what needs no server at the head, then get ready for the next answer."""
        while True:
            head = self.head
            if head is None:
                return
            if head.mode == FAKE:
                if self._run < end:
                    self._forward(end)
                self._tell(head.payload)
            elif head.kind != COPY_END:
                break
            self._pop()
        if head.mode != FORWARD and self._run < end:
            self._forward(end)
        head.bytes_out = -(self._base + end)
        n: i64 = len(self._data)
        if end < n:
            head.first_at = now

    def _message(self, kind: i64, pos: i64, end: i64, now: float) -> None:
        """Act on any message but rows and ReadyForQuery."""
        head = self.head
        if kind == BE_PARAMETER_STATUS:
            self._parameter(pos, end)
            return
        if kind == BE_NOTIFICATION:
            if head is not None and head.mode != FORWARD and self.peer is not None:
                self._tell(self._data[pos:end])
                self._run = end
            return
        if kind == BE_NOTICE:
            if head is not None and head.mode != FORWARD:
                self._cut(pos, end)
            elif self.tentative:
                # It may tell of progress.
                self.settle()
            return
        if kind == BE_ERROR:
            self._error(pos, end, now)
            return
        if head is None:
            raise ProtocolViolation("a server sent an answer that nobody asked for")
        sent = head.kind
        if head.mode != FORWARD:
            self._cut(pos, end)
        if kind == BE_COMMAND_COMPLETE:
            if head.edited and self.peer is not None:
                instead = self.peer.completed(head)
                if instead:
                    self._cut(pos, end)
                    self.peer.forward(instead)
            if sent == QUERY:
                head.rows += affected_rows(self._data, pos, end)
                return
            if sent == EXECUTE:
                head.rows = affected_rows(self._data, pos, end)
                self._complete(head, end, now)
                return
            if sent == SINGLE:
                head.rows = affected_rows(self._data, pos, end)
                self._executed(head, end)
                return
        elif kind == BE_BIND_COMPLETE:
            if sent == SINGLE:
                # What an Execute of its own would be charged with begins here.
                head.bytes_out = -(self._base + end)
                head.bound = True
                if head.spared and head.mode == FORWARD:
                    # In one piece with what follows: a write to a socket costs more than all of this.
                    if self._run < pos:
                        self._forward(pos)
                    self._in_front = PARSE_COMPLETE
                return
            if sent == BIND:
                self._complete(head, end, now)
                return
        elif kind == BE_ROW_DESCRIPTION or kind == BE_NO_DATA:
            if sent == QUERY:
                return
            if sent == SINGLE:
                head.bytes_out = -(self._base + end)
                return
            if sent == DESCRIBE:
                self._complete(head, end, now)
                return
        elif kind == BE_PARSE_COMPLETE:
            if sent == SINGLE and head.parsing:
                head.parsing = False
                return
            if sent == PARSE:
                self._complete(head, end, now)
                return
        elif kind == BE_PARAMETER_DESCRIPTION:
            if sent == DESCRIBE:
                return
        elif kind == BE_EMPTY_QUERY:
            if sent == QUERY:
                return
            if sent == EXECUTE:
                self._complete(head, end, now)
                return
            if sent == SINGLE:
                self._executed(head, end)
                return
        elif kind == BE_PORTAL_SUSPENDED:
            if sent == EXECUTE:
                self._complete(head, end, now)
                return
        elif kind == BE_CLOSE_COMPLETE:
            if sent == CLOSE:
                self._complete(head, end, now)
                return
        elif kind == BE_COPY_IN or kind == BE_COPY_BOTH:
            if sent == QUERY or sent == EXECUTE:
                self._copy_in(head)
                return
        elif (kind == BE_COPY_OUT or kind == BE_COPY_DONE) and (
            sent == QUERY or sent == EXECUTE or sent == SINGLE
        ):
            return
        raise ProtocolViolation("a server sent an answer to something else than was asked")

    def _parameter(self, pos: i64, end: i64) -> None:
        name, value = parameters_of(self._data, pos, end)
        self.parameters[name] = value
        if len(self.parameters) > MAX_PARAMETERS:
            raise ProtocolViolation("a server reports more parameters than there are")
        head = self.head
        peer = self.peer
        shown = peer.shows(name, value) if peer is not None else None
        if peer is None or shown is None:
            self._cut(pos, end)
        elif shown != value:
            self._cut(pos, end)
            self._tell(parameter_status(name, shown))
        elif head is not None and head.mode != FORWARD:
            self._tell(self._data[pos:end])
            self._run = end

    def _copy_in(self, head: Reply) -> None:
        """Take note that the server reads CopyData now."""
        self.settle()
        self.copying = not self._swallow(head)
        if self.peer is not None:
            self.peer.copy_in()

    def unanswered(self) -> list[Reply]:
        """Return the statements whose answers are owed, with the bytes that came of the first: none more will."""
        found: list[Reply] = []
        reply = self.head
        if reply is not None and reply.bytes_out < 0:
            reply.bytes_out += self._base
        while reply is not None:
            if reply.sent_at != 0.0 and reply.mode == FORWARD:
                found.append(reply)
            reply = reply.next
        return found

    def fakes_behind(self) -> bool:
        """Tell whether behind the COPY at the head stands what is answered without the server."""
        head = self.head
        reply = head.next if head is not None else None
        while reply is not None:
            if reply.mode == FAKE:
                return True
            reply = reply.next
        return False

    def _swallow(self, head: Reply) -> bool:
        """Drop what the server swallows: each Sync between `head` and the end of its COPY, if that was sent.

        While a COPY runs the server ignores Flush and Sync (manual, "COPY Operations"). Returns True if its end
        was found.
        """
        before = head
        while True:
            candidate = before.next
            if candidate is None:
                return False
            if candidate.kind == COPY_END:
                return True
            if candidate.kind == SYNC:
                before.next = candidate.next
                self.length -= 1
                if self.tail is candidate:
                    self.tail = before
            else:
                before = candidate

    def _error(self, pos: i64, end: i64, now: float) -> None:
        head = self.head
        n: i64 = len(self._data)
        state = sqlstate(self._data, pos, end if end < n else n)
        fatal = self._data.find(_FATAL, pos, end) >= 0 or self._data.find(_PANIC, pos, end) >= 0
        if head is None or fatal:
            self.last_error = self._data[pos : end if end - pos < MAX_HELD else pos + MAX_HELD]
        if fatal:
            self._part(pos, end)
            raise ServerEnds(state.decode("ascii", "replace"))
        if head is None:
            return
        if self.tentative:
            if (
                head.mode == FORWARD
                and end <= n
                and self.peer is not None
                and self.peer.turns(head, state, self._data[pos:end])
            ):
                self._turn(head, state, end, now)
                return
            self.settle()
        if head.mode == SKIP:
            self._cut(pos, end)
            if self.peer is not None:
                self.peer.injected_failed(head, self._data, pos, end if end < n else n)
        elif head.mode == REPLACE:
            self._cut(pos, end)
            if self.peer is not None:
                self.peer.forward(head.payload)
        elif (
            head.repeatable
            and end <= n
            and self.peer is not None
            and self.peer.repeats(head, self._data[pos:end])
        ):
            self._cut(pos, end)
            if self.tail is not None:
                self.tail.mode = SKIP
        elif (
            (head.edited or head.kind == BIND or head.kind == DESCRIBE or head.kind == SINGLE)
            and end <= n
            and not head.cancelled_as
        ):
            self._cut(pos, end)
            if self.peer is not None:
                told = self.peer.retold(head, self._data[pos:end])
                if told:
                    self.peer.forward(told)
        elif head.cancelled_as:
            if state == _CANCELLED and end <= n:
                self._cut(pos, end)
                head.code = _QUERY_TIMEOUT
                if self.peer is not None:
                    self.peer.forward(head.cancelled_as)
        head.sqlstate = state
        self.copying = False
        if head.kind == SINGLE:
            self._executed(head, end)
            return
        if head.kind == QUERY or head.kind == SYNC:
            # A Sync that fails (a deferred constraint at commit) is still answered by its ReadyForQuery.
            return
        self._skip_to_sync(head, end, now)

    def _turn(self, head: Reply, state: bytes, end: i64, now: float) -> None:
        """Let go of all that the server says to the statement at the head, up to and with its ReadyForQuery."""
        self.tentative = False
        self._kept_back = b""
        self._run = end
        if self.tail is not None:
            self.tail.mode = SKIP
        head.sqlstate = state
        if head.kind == SINGLE:
            self._executed(head, end)
        elif head.kind != QUERY and head.kind != SYNC:
            self._skip_to_sync(head, end, now)

    def _part(self, pos: i64, end: i64) -> None:
        """Forward what stands before the server's last words at pos:end, and these if they are somebody's.

        Nothing of it is forwarded where the peer starts over.
        """
        peer = self.peer
        n: i64 = len(self._data)
        if peer is None or (not self.told and peer.starts_over()):
            return
        self.settle()
        self._cut(pos, end)
        self._in_body = False
        if self.head is not None and end <= n:
            self.parted = True
            peer.forward(self._data[pos:end])

    def _skip_to_sync(self, failed: Reply, end: i64, now: float) -> None:
        """Drop what the server discards after an error; its effects are undone, the last first."""
        dropped: list[Reply] = []
        while True:
            head = self.head
            if head is None or head.kind == SYNC or head.kind == SINGLE:
                self.skipping = head is None
                break
            dropped.append(head)
            self._pop()
        peer = self.peer
        if peer is not None:
            for reply in dropped:
                if reply.kind == EXECUTE and reply.mode == FORWARD:
                    reply.sqlstate = failed.sqlstate
                    reply.code = failed.code
                    reply.bytes_out = 0 if reply is not failed else reply.bytes_out + self._base + end
                    peer.executed(reply)
                    break
            for reply in reversed(dropped):
                if reply.kind == PARSE or reply.kind == CLOSE or reply.kind == QUERY or reply.edited:
                    peer.undone(reply, self.head)
        if head is not None and head.kind == SINGLE:
            head.sqlstate = failed.sqlstate
            head.code = failed.code
            self._executed(head, end)
        self._advance(end, now)
