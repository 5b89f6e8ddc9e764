"""Reads that are tried once more: their server died, or refused them, before anything of the answer was forwarded.

Pure: which units may be, and how one is made anew of messages that were sent already.
"""

from __future__ import annotations

from typing import Final

from proxy.session.unit import Message, Unit
from proxy.wire.codes import FE_QUERY, FE_SYNC
from proxy.wire.reply import FORWARD, SINGLE

MAX_AGAIN: Final = 65_536
"""Bytes of a read that is kept to be tried again, with those that came in the same piece. Only who holds a server
connection keeps one, so that the pools' sizes bound their number."""


def may_try_again(unit: Unit) -> bool:
    """Tell whether a unit, alone on its connection, only reads and is small enough to be kept until it is answered."""
    first = unit.first
    last = unit.last
    if not unit.reads_only or unit.tried or first is None or last is None or unit.intent is None:
        return False
    if unit.bytes > MAX_AGAIN or len(first.data) > MAX_AGAIN or len(last.data) > MAX_AGAIN:
        return False
    if unit.special or unit.halts or unit.refused is not None:
        return False
    return unit.ended_by == FE_QUERY or unit.ended_by == FE_SYNC


def failed(kept: Message) -> bool:
    """Tell whether one of the messages from `kept` on was answered with an error."""
    message: Message | None = kept
    while message is not None:
        if message.sqlstate:
            return True
        message = message.following
    return False


def anew(kept: Message) -> Unit:
    """Return the unit of the messages from `kept` on as if none of them had been sent; it is not tried a third time."""
    unit = Unit()
    message: Message | None = kept
    while message is not None:
        following = message.following
        message.following = None
        message.next = None
        message.mode = FORWARD
        message.payload = b""
        message.prepares = False
        message.first_at = 0.0
        message.sqlstate = b""
        if message.message_code == FE_SYNC and message.intent is not None:
            # Its Execute was answered, and it has been waiting for the Sync's answer since.
            message.kind = SINGLE
        intent = message.intent
        if intent is None and message.statement is not None:
            intent = message.statement.intent
        if intent is not None:
            unit.uses(intent)
        unit.ended_by = message.message_code
        unit.add(message)
        message = following
    unit.tried = True
    return unit
