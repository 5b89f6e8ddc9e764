"""One statement of the extended protocol, read at once: [Parse] Bind [Describe] Execute Sync in one piece.

That is how drivers send a single statement. Read as one message, with one answer, it costs half of what five cost.
Only what needs no second look is read like this: a statement that reads, the unnamed portal, no row limit.
Everything else is read message by message (`collect`), and so is this where it comes in pieces: the client can't
tell the difference.
"""

from __future__ import annotations

from typing import Final

from librt.strings import read_i32_be, read_i64_be
from mypy_extensions import i64

from proxy.query.cache import IntentCache
from proxy.query.intent import READ
from proxy.query.parameters import Profile
from proxy.query.prepared import Statement, StatementCache
from proxy.session.collect import ClientStatements, parsed
from proxy.session.unit import Message
from proxy.wire.codes import FE_BIND, FE_PARSE, FE_SYNC, HEADER
from proxy.wire.messages import cstring_end
from proxy.wire.reply import SINGLE

# Eight bytes each, as the numbers that they are.
_DESCRIBE: Final[i64] = (
    0x44000000_06500045  # Describe of the unnamed portal, and the first byte of an Execute
)
_EXECUTE: Final[i64] = (
    0x45000000_09000000  # Execute of the unnamed portal, with the first bytes of its row limit, 0
)
_SYNC: Final[i64] = 0x00000053_00000004  # the rest of that limit, and a Sync
# Bytes of that Describe, of Execute and Sync together, and of the Execute.
_DESCRIBED: Final[i64] = 7
_ENDED: Final[i64] = 15
_EXECUTED: Final[i64] = 10
# A Parse of no text; a Bind without names and values, with the byte in front of its length.
_LEAST_PARSE: Final[i64] = 8
_LEAST_BIND: Final[i64] = 13


def read_single(
    statements: ClientStatements,
    intents: IntentCache,
    shared: StatementCache,
    profile: Profile | None,
    data: bytes,
    start: i64,
) -> Message | None:
    """Return the statement whose messages begin at `start`; None where they have to be read one by one.

    Its code is that of the Sync which ends it. `profile` is what `read_message` takes. Raises ProtocolViolation for
    a malformed Parse or Bind.
    """
    n: i64 = len(data)
    bind = start
    if data[start] == FE_PARSE:
        length: i64 = i64(read_i32_be(data, start + 1))
        if length < _LEAST_PARSE or data[start + HEADER] != 0:
            return None
        bind = start + 1 + length
    if n - bind < _LEAST_BIND + _ENDED or data[bind] != FE_BIND or data[bind + HEADER] != 0:
        return None
    length = i64(read_i32_be(data, bind + 1))
    tail: i64 = bind + 1 + length
    if length < _LEAST_BIND - 1 or n - tail < _ENDED:
        return None
    if n - tail >= _DESCRIBED + _ENDED and read_i64_be(data, tail) == _DESCRIBE:
        tail += _DESCRIBED
    if read_i64_be(data, tail) != _EXECUTE or read_i64_be(data, tail + 7) != _SYNC:
        return None
    name_start: i64 = bind + HEADER + 1
    name_end = name_start
    name = b""
    statement: Statement | None = statements.unnamed
    if data[name_start] != 0:
        if bind != start:
            return None
        name_end = cstring_end(data, name_start, bind + 1 + length)
        name = data[name_start:name_end]
        statement = statements.named.get(name)
    elif bind != start:
        statement = parsed(statements, intents, shared, profile, data, start + HEADER + 1, bind)
    if statement is None or statement.by_sql:
        return None
    intent = statement.intent
    if intent.kind != READ or intent.special or len(intent.refused) > 0 or intent.names:
        return None
    message = Message(FE_SYNC, SINGLE, data, start, tail + _ENDED, statement)
    message.intent = intent
    message.bytes_in = _EXECUTED
    if bind != start:
        message.parsing = True
        statements.name_unnamed(message, statement)
    elif name_end > name_start:
        shared.binds += 1
        message.name = name
        message.name_start = name_start
        message.name_end = name_end
    return message
