"""Transactions that need no server yet: a BEGIN held back, and what is answered in the meantime.

Pure: looks at a unit, and builds the answers that PostgreSQL would give. A BEGIN takes effect with the first statement
behind it, and now() is that statement's; nothing else can tell the difference.
"""

from __future__ import annotations

from typing import Final

from librt.strings import read_i16_be
from mypy_extensions import i64

from proxy.errors import ClientError
from proxy.query.intent import READONLY, SESSION, TRANSACTION, Intent
from proxy.session.unit import Message, Unit
from proxy.wire.codes import FE_BIND, FE_DESCRIBE, FE_EXECUTE, FE_PARSE, FE_QUERY, FE_SYNC, HEADER
from proxy.wire.messages import (
    BIND_COMPLETE,
    EMPTY_QUERY,
    NO_DATA,
    NO_PARAMETERS,
    PARSE_COMPLETE,
    command_complete,
    ready,
)

# What stands in the place of a transaction on a server.
NONE: Final[i64] = 0
DEFERRED: Final[i64] = 1  # a BEGIN was answered and has not been sent
FAILED: Final[i64] = 2  # an error was answered behind it: nothing runs until ROLLBACK or COMMIT


class AbortedTransaction(ClientError):
    """A statement behind an error in a transaction, as PostgreSQL says it."""

    sqlstate = "25P02"
    default_message = "current transaction is aborted, commands ignored until end of transaction block"


def sole_intent(unit: Unit) -> Intent | None:
    """Return the intent of the one statement that `unit` runs; None where it has more to say than to run that."""
    first = unit.first
    if first is None or unit.refused is not None:
        return None
    if unit.ended_by == FE_QUERY:
        return first.intent if unit.length == 1 else None
    if unit.ended_by != FE_SYNC:
        return None
    return _sole_execute(first)


def _sole_execute(first: Message) -> Intent | None:
    """Return the intent of Parse, Bind, Describe, Execute, Sync about one statement without parameters."""
    intent: Intent | None = None
    portal: bytes | None = None
    ran = False
    message: Message | None = first
    while message is not None and message.message_code != FE_SYNC:
        code = message.message_code
        statement = message.statement
        if code == FE_DESCRIBE and statement is None:
            if portal is None or message.data[message.start + HEADER + 1 : message.end - 1] != portal:
                return None
        elif statement is None or (intent is not None and statement.intent is not intent):
            return None
        else:
            intent = statement.intent
            if code == FE_BIND:
                if not _binds_nothing(message):
                    return None
                portal = message.data[message.start + HEADER : message.name_start - 1]
            elif code == FE_EXECUTE:
                if ran or portal is None or message.data[message.start + HEADER : message.end - 5] != portal:
                    return None
                ran = True
            elif code != FE_PARSE and code != FE_DESCRIBE:
                return None
        message = message.following
    return intent if ran else None


def _binds_nothing(bind: Message) -> bool:
    """Tell whether a Bind has no parameters: PostgreSQL refuses one that has where the statement has none."""
    data = bind.data
    at: i64 = bind.name_end + 1
    if at + 4 > bind.end or bind.end > len(data):
        return False
    at += 2 + 2 * (i64(read_i16_be(data, at)) & 0xFFFF)
    return at + 2 <= bind.end and read_i16_be(data, at) == 0


def begins_plainly(intent: Intent, on_replica: bool) -> bool:
    """Tell whether `intent` is one BEGIN or START TRANSACTION that cannot fail on its server."""
    if intent.kind != TRANSACTION or intent.statements != 1 or not intent.begins:
        return False
    if not on_replica:
        return True
    text = intent.normalized.lower()
    return "serializable" not in text and "write" not in text


def deciding(begin: Intent, following: Intent | None) -> Intent:
    """Return which decides where a transaction goes: its BEGIN, or the SET TRANSACTION that follows."""
    if following is None:
        return begin
    if following.target == READONLY:
        says = following.reason == "SET TRANSACTION READ ONLY" and begins_plainly(begin, True)
    else:
        says = following.kind == SESSION or following.reason.startswith("SET TRANSACTION ")
    return following if says else begin


def begin_tag(intent: Intent) -> bytes:
    """Return the tag of a plain BEGIN."""
    return b"START TRANSACTION" if "START" in intent.normalized.upper() else b"BEGIN"


def end_tag(intent: Intent, failed: bool) -> bytes:
    """Return the tag of one COMMIT or ROLLBACK in a transaction of no statements, b"" where `intent` is another."""
    if intent.kind != TRANSACTION or intent.statements != 1 or not intent.ends:
        return b""
    if "CHAIN" in intent.normalized.upper():
        return b""
    return b"ROLLBACK" if failed or intent.reason == "ROLLBACK" else b"COMMIT"


def answer(unit: Unit, tag: bytes, status: i64) -> bytes:
    """Return what PostgreSQL answers to the unit of a sole statement: `tag` (b"" for an empty query), then `status`."""
    done = command_complete(tag) if tag else EMPTY_QUERY
    parts: list[bytes] = []
    message = unit.first
    while message is not None:
        code = message.message_code
        if code == FE_PARSE:
            parts.append(PARSE_COMPLETE)
        elif code == FE_BIND:
            parts.append(BIND_COMPLETE)
        elif code == FE_DESCRIBE:
            parts.append(NO_PARAMETERS + NO_DATA if message.statement is not None else NO_DATA)
        elif code == FE_EXECUTE or code == FE_QUERY:
            parts.append(done)
        message = message.following
    parts.append(ready(status))
    return b"".join(parts)
