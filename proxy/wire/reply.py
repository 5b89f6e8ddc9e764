"""What a server owes, what becomes of it, and who is told.

For every message sent to a server that will be answered there is one Reply. Its mode says what happens to the
answer: it is forwarded to the client; skipped, because the proxy injected the message; faked, because the
message was never sent and its answer is known; or replaced, because the proxy provoked an error in order to
put one of its own in its place.

    sent                 ends with
    QUERY                ReadyForQuery
    PARSE BIND CLOSE     ParseComplete, BindComplete, CloseComplete
    DESCRIBE             RowDescription or NoData
    EXECUTE              CommandComplete, EmptyQueryResponse or PortalSuspended
    SYNC                 ReadyForQuery
    SINGLE               what Parse, Bind, Describe, Execute and Sync are answered with
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import i64, mypyc_attr

# What was sent.
NOTHING: Final = 0  # a Flush: owes nothing and is never queued
QUERY: Final = 1
PARSE: Final = 2
BIND: Final = 3
DESCRIBE: Final = 4
EXECUTE: Final = 5
CLOSE: Final = 6
SYNC: Final = 7
COPY_END: Final = 8  # CopyDone or CopyFail: owes nothing, but marks which Syncs a COPY swallows
SINGLE: Final = (
    9  # [Parse] Bind [Describe] Execute Sync at once; what is left of it after the Execute is a SYNC
)

# What becomes of the answer.
FORWARD: Final = 0
SKIP: Final = 1
FAKE: Final = 2
REPLACE: Final = 3


class Reply:
    """One answer that is owed; who sends may derive from it to keep what it knows of the message.

    `subject` is what the message was about, for the session to know again; `payload` is what a FAKE or REPLACE
    puts in the place of the server's answer. Times are seconds of the monotonic clock, 0.0 for not yet.

    Not `acyclic` to mypyc, though it is: only what the collector knows of can be let go of in a long row.
    """

    def __init__(self, kind: i64, mode: i64, subject: object | None = None, payload: bytes = b"") -> None:
        self.kind: i64 = kind
        self.mode: i64 = mode
        self.subject: object | None = subject
        self.payload = payload
        self.next: Reply | None = None
        self.queued_at: float = 0.0
        self.sent_at: float = 0.0
        self.first_at: float = 0.0
        self.bytes_in: i64 = 0
        self.bytes_out: i64 = 0
        self.rows: i64 = 0
        self.sqlstate: bytes = b""
        self.code: bytes = b""
        # What the client is told instead, if the answer is that the statement was cancelled: it took too long.
        self.cancelled_as: bytes = b""
        self.in_transaction: bool = False
        # The text was rewritten: its peer is asked what to tell the client of it.
        self.edited: bool = False
        # It can be sent once more: nothing has run before it in its transaction.
        self.repeatable: bool = False
        # Of a SINGLE: its Parse has not been answered yet; was not sent, and is answered here; its Bind was answered.
        self.parsing: bool = False
        self.spared: bool = False
        self.bound: bool = False


@mypyc_attr(allow_interpreted_subclasses=True)
class Peer:
    """Whoever a server connection works for at the moment: receives what the queue decides."""

    def forward(self, data: bytes) -> None:
        """Take bytes for the client: whole messages, or the next piece of one."""
        raise AssertionError

    def executed(self, reply: Reply) -> None:
        """Learn that a Query or an Execute has been answered, well or badly."""
        raise AssertionError

    def completed(self, reply: Reply) -> bytes:
        """Learn that a statement of a rewritten text has completed; returns what is told instead, or b""."""
        raise AssertionError

    def retold(self, reply: Reply, error: bytes) -> bytes:
        """Return the ErrorResponse to a rewritten text, a Bind or a Describe as the client gets it, b"" for nothing."""
        raise AssertionError

    def repeats(self, reply: Reply, error: bytes) -> bool:
        """Tell whether a reply that failed is not told, but asked for once more after the Sync that is owed."""
        raise AssertionError

    def turns(self, reply: Reply, state: bytes, error: bytes) -> bool:
        """Tell whether a reply that failed, with the SQLSTATE `state`, is not told, but asked for on another server."""
        return False

    def undone(self, reply: Reply, later: Reply | None) -> None:
        """Learn that a Parse, Close or Query did not take effect; `later` is what is owed behind it."""
        raise AssertionError

    def shows(self, name: bytes, value: bytes) -> bytes | None:
        """Return the value that the client is to see in this ParameterStatus, None where it is to see none."""
        raise AssertionError

    def row(self, reply: Reply, data: bytes, start: i64, end: i64) -> None:
        """Take a DataRow of a skipped reply."""
        raise AssertionError

    def injected_failed(self, reply: Reply, data: bytes, start: i64, end: i64) -> None:
        """Learn that a message of the proxy's own was answered with an ErrorResponse."""
        raise AssertionError

    def copy_in(self) -> None:
        """Learn that the server now expects CopyData."""
        raise AssertionError

    def starts_over(self) -> bool:
        """Tell whether the server's last words are not told: what it owes is asked for once more, elsewhere."""
        return False
