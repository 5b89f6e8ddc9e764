"""The unit: what a client sends up to Query, Sync or Flush, which goes to one server connection.

Collecting a unit needs no server. It finds out which statements the unit uses, so that they decide together
where it goes.
"""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64

from proxy.errors import ClientError
from proxy.query.intent import READ, READONLY, Intent
from proxy.query.prepared import Statement

MAX_BYTES: Final = 262_144
"""A unit longer than this goes to a server before its Sync has come: one full read of a socket."""


@final
class Message:
    """One message of a unit: data[start:end], where `end` may lie behind what has been received of it.

    `statement` is what it prepares, binds, describes or executes. With `error` set the message is not sent: the
    client gets that instead.
    """

    def __init__(self, kind: i64, data: bytes, start: i64, end: i64, statement: Statement | None) -> None:
        self.kind: i64 = kind
        self.data = data
        self.start: i64 = start
        self.end: i64 = end
        self.statement: Statement | None = statement
        self.intent: Intent | None = None
        self.name: bytes = b""
        self.error: ClientError | None = None
        self.queued_at: float = 0.0


@final
class Unit:
    """Messages in the order in which they came, and what they deserve together."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.bytes: i64 = 0
        # The statement that decides where the unit goes: the first that is not proven to read.
        self.intent: Intent | None = None
        self.reads_only = True
        # Those that leave something behind in the server's session.
        self.special: list[Intent] = []
        self.executes = False
        self.begins = False
        self.ends = False
        # The kind of the message that ended it; 0 while it is open.
        self.ended_by: i64 = 0
        # Position of the first message that is refused, -1 for none.
        self.refused_at: i64 = -1

    def add(self, message: Message) -> None:
        """Append `message`."""
        if message.error is not None and self.refused_at < 0:
            self.refused_at = len(self.messages)
        self.messages.append(message)
        self.bytes += message.end - message.start

    def uses(self, intent: Intent) -> None:
        """Note that a statement with `intent` is part of the unit."""
        known = self.intent
        if known is None:
            self.intent = intent
        elif known.kind == READ and (intent.kind != READ or intent.target != READONLY):
            self.intent = intent
        if intent.pin or intent.unclean or intent.settings:
            self.special.append(intent)
        if intent.kind != READ:
            self.reads_only = False
            if intent.begins:
                self.begins = True
            if intent.ends:
                self.ends = True
                self.begins = False
