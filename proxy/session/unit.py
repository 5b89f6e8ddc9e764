"""The unit: what a client sends up to Query, Sync or Flush, which goes to one server connection.

Collecting a unit needs no server. It finds out which statements the unit uses, so that they decide together
where it goes.
"""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64, mypyc_attr

from proxy.errors import ClientError
from proxy.query.intent import READ, READONLY, Intent
from proxy.query.prepared import Statement
from proxy.session.renaming import Edit
from proxy.wire.codes import FE_EXECUTE
from proxy.wire.reply import FORWARD, Reply

MAX_BYTES: Final = 262_144
"""A unit longer than this goes to a server before its Sync has come: one full read of a socket."""


@final
@mypyc_attr(free_list_len=1)
class Message(Reply):
    """One message of a client, data[start:end], and the reply that it will be owed.

    `end` may lie behind what has been received. `statement` is what the message prepares, binds, describes or
    closes, under the client's `name`; `intent` what a Query or Execute runs. With `error` set the message is not
    sent: the client gets that instead.
    """

    def __init__(
        self, code: i64, owed: i64, data: bytes, start: i64, end: i64, statement: Statement | None
    ) -> None:
        super().__init__(owed, FORWARD)
        self.message_code: i64 = code
        self.data = data
        self.start: i64 = start
        self.end: i64 = end
        self.statement: Statement | None = statement
        self.intent: Intent | None = None
        self.name: bytes = b""
        # Where the statement's name stands in a Bind.
        self.name_start: i64 = 0
        self.name_end: i64 = 0
        self.error: ClientError | None = None
        # It is the first to prepare its statement on the server connection.
        self.prepares = False
        # What its text was rewritten to, for the names of prepared statements in it.
        self.edit: Edit | None = None
        # Of a Query: whose trace it belongs to, as its text says; another's statement knows its own.
        self.traceparent: bytes = b""
        # Of a Query: its text, where the access log shows texts as they came.
        self.text: bytes = b""
        self.following: Message | None = None


@final
class Unit:
    """Messages in the order in which they came, and what they deserve together."""

    def __init__(self) -> None:
        self.first: Message | None = None
        self.last: Message | None = None
        self.length: i64 = 0
        self.bytes: i64 = 0
        # The statement that decides where the unit goes: the first that is not proven to read, or needs the primary
        # where one before it (a SET) doesn't.
        self.intent: Intent | None = None
        self.reads_only = True
        # It was sent once and not answered: once more is enough.
        self.tried = False
        # Those that leave something behind in the server's session.
        self.special: list[Intent] = []
        # Those that may change what others read.
        self.changing: list[Intent] = []
        # It runs RESET ALL or DISCARD ALL, which takes away what the messages behind it need.
        self.sweeps = False
        # It does that, or changes the client's names by SQL: what follows has to wait.
        self.halts = False
        self.begins = False
        self.ends = False
        # Of a key that may not write: see Session._loosen.
        self.loosened: i64 = 0
        # The kind of the message that ended it; 0 while it is open.
        self.ended_by: i64 = 0
        # The first message that is refused, and whether one before it runs a statement.
        self.refused: Message | None = None
        self.runs_before_refused = False

    def clear(self) -> None:
        """Make the unit as new; its messages have been sent or answered."""
        self.first = None
        self.last = None
        self.length = 0
        self.bytes = 0
        self.intent = None
        self.reads_only = True
        self.tried = False
        if self.special:
            self.special = []
        if self.changing:
            self.changing = []
        self.sweeps = False
        self.halts = False
        self.begins = False
        self.ends = False
        self.loosened = 0
        self.ended_by = 0
        self.refused = None
        self.runs_before_refused = False

    def add(self, message: Message) -> None:
        """Append `message`."""
        if self.refused is None:
            if message.error is not None:
                self.refused = message
            elif message.message_code == FE_EXECUTE:
                self.runs_before_refused = True
        last = self.last
        if last is None:
            self.first = message
        else:
            last.following = message
        self.last = message
        self.length += 1
        self.bytes += message.end - message.start

    def uses(self, intent: Intent) -> None:
        """Note that a statement with `intent` is part of the unit."""
        known = self.intent
        if known is None or (
            known is not intent
            and (known.kind == READ or known.target == READONLY)
            and ((known.kind == READ and intent.kind != READ) or intent.target != READONLY)
        ):
            self.intent = intent
        if intent.special:
            self.special.append(intent)
        if intent.changes:
            self.changing.append(intent)
            # What was refused as a read is none, whatever its text says.
            self.reads_only = False
        if intent.kind != READ:
            self.reads_only = False
            if intent.begins:
                self.begins = True
            if intent.ends:
                self.ends = True
                self.begins = bool(intent.begins)
