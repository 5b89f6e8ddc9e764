"""Reading a client's extended-protocol messages: what each is about, and what it may do (manual, "Extended Query").

Pure: looks at the bytes and at the client's own statements and portals; no server is involved yet.
"""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64

from proxy.errors import ClientError, FeatureNotSupported, ProtocolViolation
from proxy.query.cache import IntentCache
from proxy.query.naming import PREPARE as PREPARE_STEP
from proxy.query.parameters import Profile
from proxy.query.prepared import NO_TYPES, Statement, StatementCache
from proxy.session.renaming import Edit, UndefinedStatement
from proxy.session.unit import Message
from proxy.wire.codes import (
    FE_BIND,
    FE_CLOSE,
    FE_DESCRIBE,
    FE_EXECUTE,
    FE_FLUSH,
    FE_PARSE,
    FE_SYNC,
    HEADER,
    MAX_HELD,
)
from proxy.wire.messages import cstring_end
from proxy.wire.reply import BIND, CLOSE, DESCRIBE, EXECUTE, NOTHING, PARSE, SYNC

STATEMENT: Final = 0x53
"""S: what a Describe or Close is about, as opposed to P for a portal."""

NO_STATEMENT: Final = b""
"""The subject of a message that changes the unnamed statement, where there was none before."""

MAX_STATEMENTS: Final = 10_000
"""Prepared statements that one client may name; each costs some 200 bytes beside its text, which is shared."""

MAX_STATEMENT_BYTES: Final = 16 * 1024 * 1024
"""Their texts together: they are shared, but for those that no other client uses."""

_MAX_UNSETTLED: Final = 63
"""Bytes of a name of which it is known that it is not certain: PostgreSQL's names have no more (NAMEDATALEN)."""

MAX_PORTALS: Final = 10_000
"""Portals that one client may name within a transaction."""


class DuplicateStatement(ClientError):
    """A name that already stands for a prepared statement, as PostgreSQL says it."""

    sqlstate = "42P05"


class TooManyStatements(ClientError):
    """More names than a client may have."""

    sqlstate = "54000"


@final
class ClientStatements:
    """What one client has prepared and bound: names to statements."""

    def __init__(self) -> None:
        self.named: dict[bytes, Statement] = {}
        self.named_bytes: i64 = 0
        self.unnamed: Statement | None = None
        # The last one that was unnamed: drivers send the same text again and again.
        self.last_unnamed: Statement | None = None
        self.last_generation: i64 = -1
        self.last_renewal: i64 = -1
        self.last_profile: Profile | None = None
        self.portals: dict[bytes, Statement] = {}
        self.unnamed_portal: Statement | None = None
        # Names whose statements others have prepared before, and that were not used yet.
        self.unproven: set[bytes] = set()
        # Names that a Parse or Close has changed which may still turn out to be skipped.
        self.unsettled: set[bytes] = set()
        # Portals of rewritten texts.
        self.edits: dict[bytes, Edit] = {}

    def get(self, name: bytes) -> Statement | None:
        """Return the statement called `name`, b"" for the unnamed one."""
        return self.named.get(name) if name else self.unnamed

    def put(self, name: bytes, statement: Statement) -> None:
        """Call `statement` by `name`, which is free."""
        self.named[name] = statement
        self.named_bytes += len(statement.sql)

    def drop(self, name: bytes) -> None:
        """Free `name`."""
        statement = self.named.pop(name, None)
        if statement is not None:
            self.named_bytes -= len(statement.sql)
            self.unproven.discard(name)

    def unsettle(self, name: bytes) -> None:
        """Note that what `name` stands for is not certain until what is under way is answered."""
        if len(name) <= _MAX_UNSETTLED and len(self.unsettled) < MAX_STATEMENTS:
            self.unsettled.add(name)

    def name_unnamed(self, message: Message, statement: Statement | None) -> None:
        """Make `statement` the unnamed one, None for none, as `message` has it; that remembers the one before."""
        before = self.unnamed
        message.subject = before if before is not None else NO_STATEMENT
        self.unnamed = statement

    def admit(self, edit: Edit) -> None:
        """Raise TooManyStatements or FeatureNotSupported where the client can't have what a text prepares by SQL."""
        for step in edit.steps:
            if step.verb != PREPARE_STEP:
                continue
            problem = self.problem(len(step.statement.sql))
            if problem is not None:
                raise problem

    def problem(self, size: i64) -> ClientError | None:
        """Return why no statement of `size` bytes can be named any more, None where it can."""
        if size > MAX_HELD:
            return FeatureNotSupported(
                f"the text of a named prepared statement may have {MAX_HELD} bytes at most",
                hint="Prepare it without a name, or send it as a simple query.",
            )
        if len(self.named) >= MAX_STATEMENTS:
            return TooManyStatements(f"a client may have {MAX_STATEMENTS} prepared statements at most")
        if self.named_bytes + size > MAX_STATEMENT_BYTES:
            return TooManyStatements(
                f"a client's prepared statements may have {MAX_STATEMENT_BYTES} bytes at most"
            )
        return None

    def end_transaction(self) -> None:
        """Forget the portals: they live no longer than their transaction."""
        if self.portals:
            self.portals = {}
        self.unnamed_portal = None
        if self.edits:
            self.edits = {}


def read_message(
    statements: ClientStatements,
    intents: IntentCache,
    shared: StatementCache,
    profile: Profile | None,
    kind: i64,
    data: bytes,
    start: i64,
    end: i64,
) -> Message:
    """Return what the message at data[start:end] is about; `end` may lie behind the bytes at hand.

    `profile` holds the parameters under which a Parse is parsed, None where they are not known.
    Names change provisionally: the reply queue undoes a Parse or Close that fails. Raises ProtocolViolation if
    the message is malformed.
    """
    n: i64 = len(data)
    limit: i64 = end if end < n else n
    body: i64 = start + HEADER
    if kind == FE_BIND:
        portal_end: i64 = cstring_end(data, body, limit)
        name_end: i64 = cstring_end(data, portal_end + 1, limit)
        name = data[portal_end + 1 : name_end]
        if name_end > portal_end + 1:
            shared.binds += 1
        statement = statements.get(name)
        message = Message(kind, BIND, data, start, end, statement)
        message.name = name
        message.name_start = portal_end + 1
        message.name_end = name_end
        if statements.edits:
            statements.edits.pop(data[body:portal_end], None)
        if statement is None:
            message.error = _undefined(name)
        elif portal_end == body:
            statements.unnamed_portal = statement
        elif len(statements.portals) >= MAX_PORTALS:
            message.error = TooManyStatements("too many portals in one transaction")
        else:
            statements.portals[data[body:portal_end]] = statement
        return message
    if kind == FE_EXECUTE:
        portal_end = cstring_end(data, body, limit)
        if portal_end + 5 != end:
            raise ProtocolViolation("invalid Execute message")
        statement = statements.unnamed_portal
        if portal_end != body:
            statement = statements.portals.get(data[body:portal_end])
        message = Message(kind, EXECUTE, data, start, end, statement)
        if statement is not None:
            message.intent = statement.intent
            if statements.edits:
                message.edit = statements.edits.get(data[body:portal_end])
        return message
    if kind == FE_PARSE:
        return _parse(statements, intents, shared, profile, data, start, end)
    if kind == FE_DESCRIBE or kind == FE_CLOSE:
        owed: i64 = DESCRIBE if kind == FE_DESCRIBE else CLOSE
        name_end = cstring_end(data, body + 1, limit)
        if name_end + 1 != end:
            raise ProtocolViolation("invalid Describe or Close message")
        name = data[body + 1 : name_end]
        target: i64 = data[body]
        if target != STATEMENT:
            if target != 0x50:
                raise ProtocolViolation("invalid subtype of a Describe or Close message")
            return Message(kind, owed, data, start, end, None)
        statement = statements.get(name)
        message = Message(kind, owed, data, start, end, statement)
        message.name = name
        if kind == FE_CLOSE:
            if name:
                if statement is not None:
                    statements.drop(name)
                    statements.unsettle(name)
            else:
                statements.name_unnamed(message, None)
        elif statement is None:
            message.error = _undefined(name)
        return message
    if kind == FE_SYNC:
        return Message(kind, SYNC, data, start, end, None)
    if kind == FE_FLUSH:
        return Message(kind, NOTHING, data, start, end, None)
    raise ProtocolViolation(f"invalid frontend message type {kind}")


def _parse(
    statements: ClientStatements,
    intents: IntentCache,
    shared: StatementCache,
    profile: Profile | None,
    data: bytes,
    start: i64,
    end: i64,
) -> Message:
    name_end: i64 = cstring_end(data, start + HEADER, end)
    name = data[start + HEADER : name_end]
    statement = parsed(statements, intents, shared, profile, data, name_end + 1, end, len(name) > 0)
    message = Message(FE_PARSE, PARSE, data, start, end, statement)
    message.name = name
    if not name:
        statements.name_unnamed(message, statement)
        return message
    shared.client_parses += 1
    if name in statements.named:
        message.error = DuplicateStatement(f'prepared statement "{_readable(name)}" already exists')
    else:
        message.error = statements.problem(len(statement.sql))
        if message.error is None:
            statements.put(name, statement)
            statements.unsettle(name)
            if statement.proven:
                statements.unproven.add(name)
    return message


def parsed(
    statements: ClientStatements,
    intents: IntentCache,
    shared: StatementCache,
    profile: Profile | None,
    data: bytes,
    start: i64,
    end: i64,
    named: bool = False,
) -> Statement:
    """Return the statement of a Parse that ends at `end`, and whose text starts at `start`.

    Raises ProtocolViolation if the message is malformed.
    """
    # Most have no parameter types: then the text ends three bytes before the message, unless it ends sooner.
    text_end: i64 = end - 3
    sql = data[start:text_end] if text_end >= start else b"\0"
    types = NO_TYPES
    if data[end - 1] != 0 or data[end - 2] != 0 or data[end - 3] != 0 or 0 in sql:
        text_end = cstring_end(data, start, end)
        sql = data[start:text_end]
        types = data[text_end + 1 : end]
        if len(types) < 2 or (len(types) - 2) % 4 != 0:
            raise ProtocolViolation("invalid Parse message")
    statement = None if named else statements.last_unnamed
    if (
        statement is None
        or statement.sql != sql
        or statement.types != types
        or statements.last_profile is not profile
        # Functions have changed: what the statement was taken for may be wrong now.
        or statements.last_generation != intents.generation
        or statements.last_renewal != shared.renewals
    ):
        statement = shared.get(sql, types, intents.lookup(sql), profile)
        if not named:
            statements.last_unnamed = statement
            statements.last_generation = intents.generation
            statements.last_renewal = shared.renewals
            statements.last_profile = profile
    return statement


def _undefined(name: bytes) -> ClientError:
    if not name:
        return UndefinedStatement("unnamed prepared statement does not exist")
    return UndefinedStatement(f'prepared statement "{_readable(name)}" does not exist')


def _readable(name: bytes) -> str:
    return name.decode("utf-8", "replace")
