"""Writing a unit to a server connection: what must precede, then the client's own bytes, in one go.

Each message that will be answered is queued as the reply queue wants it; what the server already holds is not
sent, what it lacks is sent in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from librt.strings import read_i32_be
from mypy_extensions import i64

from proxy.errors import ClientError
from proxy.query.naming import PREPARE as PREPARE_STEP
from proxy.query.prepared import Statement
from proxy.session.renaming import Edit
from proxy.session.settings import settings_between
from proxy.session.unit import Message, Unit
from proxy.upstream.server import Server
from proxy.wire.codes import (
    FAILED_TRANSACTION,
    FE_BIND,
    FE_CLOSE,
    FE_DESCRIBE,
    FE_EXECUTE,
    FE_FLUSH,
    FE_PARSE,
    FE_QUERY,
    FE_SYNC,
)
from proxy.wire.messages import (
    CLOSE_COMPLETE,
    FLUSH,
    PARSE_COMPLETE,
    SYNC,
    bind_renamed,
    bind_text,
    bind_unnamed,
    close_portal,
    close_statement,
    describe_renamed,
    error_response,
    execute,
    parse,
    query,
)
from proxy.wire.reply import (
    BIND,
    CLOSE,
    EXECUTE,
    FAKE,
    FORWARD,
    NOTHING,
    PARSE,
    QUERY,
    REPLACE,
    SINGLE,
    SKIP,
    Peer,
    Reply,
)
from proxy.wire.reply import SYNC as SYNC_REPLY

_REFUSED: Final = b"_sluice_refused"
"""A statement and portal that never exist: binding it is an error for certain, which one of ours replaces."""

_BETWEEN: Final = b"_sluice_between"
"""The statement and portal that change settings in the middle of a client's transaction."""

EDITED: Final = b"_sluice_edited"
"""The statement that a rewritten text is, while it is bound or described."""

UNNAMED: Final = b"unnamed"
"""The subject of a Parse of the proxy's own that makes a client's statement the unnamed one."""

BEGIN: Final = b"begin"
"""The subject of a BEGIN that was held back."""

_FAILING_QUERY: Final = query(b"this statement was refused by the proxy")


@final
class Writer:
    """Gathers bytes for one server; neighbouring messages that go out as they came are copied once or not at all."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self._data: bytes = b""
        self._start: i64 = 0
        self._end: i64 = 0

    def put(self, chunk: bytes) -> None:
        """Append bytes of the proxy's own."""
        self._flush()
        self.chunks.append(chunk)

    def copy(self, data: bytes, start: i64, end: i64) -> None:
        """Append data[start:end]."""
        if data is self._data and start == self._end:
            self._end = end
            return
        self._flush()
        self._data = data
        self._start = start
        self._end = end

    def write_to(self, server: Server) -> None:
        """Send everything in one write, and be ready for the next."""
        chunks = self.chunks
        if not chunks:
            if self._end > self._start:
                server.outlet.write(self._span())
                self._forget()
            return
        self._flush()
        self.chunks = []
        server.outlet.write(chunks[0] + chunks[1] if len(chunks) == 2 else b"".join(chunks))

    def _span(self) -> bytes:
        data = self._data
        n: i64 = len(data)
        if self._start == 0 and self._end >= n:
            return data
        return data[self._start : self._end]

    def _flush(self) -> None:
        if self._end > self._start:
            self.chunks.append(self._span())
        self._forget()

    def _forget(self) -> None:
        self._data = b""
        self._start = 0
        self._end = 0


def write_prelude(server: Server, settings: list[tuple[str, str]], out: Writer) -> None:
    """Write one statement that sets `settings` (name and value) for the session, in its own transaction.

    The values are parameters, so that pg_stat_activity never shows them; the statement is parsed once for each
    number of settings on a server connection.
    """
    count = len(settings)
    name = b"_sluice_set_%d" % count
    replies = server.replies
    if count not in server.preludes:
        server.preludes.add(count)
        out.put(parse(name, _set_config(count)))
        replies.push(Reply(PARSE, SKIP))
    values: list[bytes] = []
    for setting, value in settings:
        values.append(setting.encode())
        values.append(value.encode())
    out.put(bind_text(name, values))
    out.put(execute(name))
    out.put(SYNC)
    replies.push(Reply(BIND, SKIP))
    replies.push(Reply(EXECUTE, SKIP))
    replies.push(Reply(SYNC_REPLY, SKIP))


def write_between(
    server: Server, settings: list[tuple[str, str]], out: Writer, subject: object | None = None
) -> None:
    """Write `settings` among a client's messages, within its transaction and leaving no portal behind.

    The statement is parsed for this once: what the server holds by then is not known.
    """
    if not settings:
        return
    values = [each.encode() for setting in settings for each in setting]
    write_command(server, _set_config(len(settings)), out, subject, values)


def write_command(
    server: Server, sql: bytes, out: Writer, subject: object | None, values: Sequence[bytes] = ()
) -> None:
    """Write one statement of the proxy's own among a client's messages, with its parameters' values."""
    out.put(close_statement(_BETWEEN) + parse(_BETWEEN, sql))
    out.put(bind_text(_BETWEEN, list(values)) + execute(_BETWEEN) + close_portal(_BETWEEN))
    for kind in (CLOSE, PARSE, BIND, EXECUTE, CLOSE):
        server.replies.push(Reply(kind, SKIP, subject))


def _set_config(count: int) -> bytes:
    calls = [b"pg_catalog.set_config($%d, $%d, false)" % (2 * at + 1, 2 * at + 2) for at in range(count)]
    return b"SELECT " + b", ".join(calls)


def write_begin(server: Server, begin: Statement, out: Writer) -> None:
    """Write a BEGIN in front of the unit that it was held back for, without a Sync: should it fail, nothing runs.

    It uses the unnamed portal, as no portal of the client's lives outside a transaction.
    """
    replies = server.replies
    if not server.holds(begin):
        closing = server.hold(begin)
        if closing:
            out.put(closing)
        write_parse(server, begin, out)
    out.put(bind_unnamed(begin.name) + execute(b""))
    replies.push(Reply(BIND, SKIP, BEGIN))
    replies.push(Reply(EXECUTE, SKIP, BEGIN))


def write_unit(
    server: Server,
    unit: Unit,
    out: Writer,
    now: float,
    in_transaction: bool,
    settled: bool = True,
    keep: bool = False,
) -> bool:
    """Write the messages of `unit` and queue what the server will owe, up to the first that is refused.

    The messages are their own replies; they and the client's bytes are let go of, unless they are to `keep`.
    `settled` tells that the server's settings are those of its profile: the transaction has changed none. Returns
    False if one was refused.
    """
    replies = server.replies
    message = unit.first
    while message is not None:
        following = message.following
        if not keep:
            message.following = None
        if message.error is not None:
            _write_refusal(server, unit, message, message.error, out)
            if replies.peer is not None:
                undo(replies.peer, following)
            return False
        if message.kind == SINGLE:
            _write_single(server, message, out, now, settled, keep)
            if not keep:
                message.data = b""
            message = following
            continue
        code = message.message_code
        if message.edit is not None:
            _write_edit(server, message, message.edit, out, settled)
        if code == FE_QUERY or code == FE_EXECUTE:
            message.sent_at = now
            message.bytes_in = message.end - message.start
            message.in_transaction = in_transaction
            if code == FE_QUERY:
                # A simple query destroys the unnamed statement (manual, "Extended Query").
                server.name_unnamed(None)
        elif (code == FE_BIND or code == FE_DESCRIBE) and message.edit is None:
            statement = message.statement
            if statement is not None:
                if len(message.name) > 0:
                    if not server.holds(statement):
                        parse_again(server, statement, out, settled)
                else:
                    _need_unnamed(server, statement, out)
        elif code == FE_PARSE:
            if len(message.name) > 0:
                _write_named_parse(server, message, out)
                if not keep:
                    message.data = b""
                message = following
                continue
            server.name_unnamed(message.statement)
        elif code == FE_CLOSE and len(message.name) == 0:
            server.name_unnamed(None)
        elif code == FE_CLOSE:
            if replies.copying:
                write_stray(server, out)
            # Other clients use the statement too; only this client's name for it goes.
            message.mode = FAKE
            message.payload = CLOSE_COMPLETE
            if not keep:
                message.data = b""
            replies.push(message)
            message = following
            continue
        if (
            code != FE_EXECUTE
            and message.statement is not None
            and (len(message.name) > 0 or message.edit is not None)
        ):
            known = message.statement.name if message.edit is None else EDITED
            if code == FE_BIND:
                out.put(
                    bind_renamed(
                        message.data,
                        message.start,
                        message.end,
                        message.name_start,
                        message.name_end,
                        known,
                    )
                )
            else:
                out.put(describe_renamed(code, known))
        else:
            out.copy(message.data, message.start, message.end)
        if not keep:
            message.data = b""
        if message.kind != NOTHING:
            replies.push(message)
        message = following
    return True


def _write_single(
    server: Server, message: Message, out: Writer, now: float, settled: bool, alone: bool
) -> None:
    """Write a statement that is one message, and queue its answer.

    Where the server connection has parsed the same just now, and the statement is `alone` there, its Parse isn't sent.
    """
    message.sent_at = now
    # It may have been sent before, to a server that died.
    message.parsing = message.data[message.start] == FE_PARSE
    message.spared = False
    message.bound = False
    statement = message.statement
    assert statement is not None
    if len(message.name) > 0:
        if not server.holds(statement):
            parse_again(server, statement, out, settled)
        out.put(
            bind_renamed(
                message.data,
                message.start,
                message.end,
                message.name_start,
                message.name_end,
                statement.name,
                i64(read_i32_be(message.data, message.start + 1)),
            )
        )
    elif not message.parsing:
        _need_unnamed(server, statement, out)
        out.copy(message.data, message.start, message.end)
    elif alone and message.end == len(message.data) and server.spares_unnamed(statement, now):
        message.parsing = False
        message.spared = True
        bind = message.start + 1 + i64(read_i32_be(message.data, message.start + 1))
        out.copy(message.data, bind, message.end)
    else:
        server.parses_unnamed(statement, now)
        out.copy(message.data, message.start, message.end)
    server.replies.push(message)


def _need_unnamed(server: Server, statement: Statement, out: Writer) -> None:
    """Make `statement` the unnamed one in front of a message that uses it, where it isn't."""
    if server.unnamed is not statement:
        out.put(statement.unnamed_message())
        server.replies.push(Reply(PARSE, SKIP, UNNAMED))
    # Also where it is: it is executed once more than its Parse allowed for.
    server.name_unnamed(statement)


def write_stray(server: Server, out: Writer) -> None:
    """Write, while a COPY waits for data, what has no place there: the server ends the connection with its own words.

    It stands for a message that isn't sent: from a client of its own the server would have got that. If the COPY has
    failed meanwhile it does nothing.
    """
    out.put(close_statement(_REFUSED))
    server.replies.push(Reply(CLOSE, SKIP))


def undo(peer: Peer, message: Message | None) -> None:
    """Take back what the messages from `message` on were to prepare and close, the last first: they are not sent."""
    unsent: list[Message] = []
    while message is not None:
        unsent.append(message)
        following = message.following
        message.following = None
        message = following
    for reply in reversed(unsent):
        peer.undone(reply, None)


def parse_again(server: Server, statement: Statement, out: Writer, settled: bool) -> None:
    """Prepare a named statement where the server connection lacks it, under the settings that it belongs to."""
    closing = server.hold(statement)
    if closing:
        out.put(closing)
    theirs = statement.profile
    ours = server.profile
    if theirs is None or ours is None or theirs is ours or (settled and theirs.parse_key == ours.parse_key):
        write_parse(server, statement, out)
        return
    there = settings_between(server, ours, theirs) if settled else None
    back = settings_between(server, theirs, ours) if settled else None
    if there is None or back is None:
        # They can't be restored here: it serves this once as it is, and nobody else.
        write_parse(server, statement, out)
        server.outdate(statement)
        return
    # In a failed transaction the client gets what the server says to that.
    write_between(server, there, out, UNNAMED)
    write_parse(server, statement, out)
    write_between(server, back, out, UNNAMED)


def write_parse(server: Server, statement: Statement, out: Writer) -> None:
    """Write what prepares `statement`."""
    out.put(statement.parse_message)
    replies = server.replies
    if not statement.by_sql:
        replies.push(Reply(PARSE, SKIP, statement))
        return
    replies.push(Reply(CLOSE, SKIP))
    replies.push(Reply(PARSE, SKIP, statement))
    replies.push(Reply(BIND, SKIP, statement))
    replies.push(Reply(EXECUTE, SKIP, statement))
    replies.push(Reply(CLOSE, SKIP))


def _write_edit(server: Server, message: Message, edit: Edit, out: Writer, settled: bool) -> None:
    """Prepare what a rewritten text needs, in front of its message, and the text itself in front of a Bind."""
    replies = server.replies
    code = message.message_code
    message.edited = True
    last = replies.tail
    if code == FE_QUERY or code == FE_EXECUTE:
        for step in edit.steps:
            if step.verb == PREPARE_STEP and not server.holds(step.statement):
                closing = server.hold(step.statement)
                if closing:
                    out.put(closing)
    # In a failed transaction a Query fails by itself, and nothing but the empty text can be parsed.
    failed = code == FE_QUERY and replies.status == FAILED_TRANSACTION
    if code != FE_EXECUTE:
        for statement in edit.needs:
            if not (failed and statement.sql) and not server.holds(statement):
                parse_again(server, statement, out, settled)
    if code == FE_QUERY:
        if replies.tail is not last:
            # Nothing is outstanding: the session sees to that.
            out.put(SYNC)
            replies.push(Reply(SYNC_REPLY, SKIP))
    elif code != FE_EXECUTE and message.statement is not None:
        out.put(close_statement(EDITED) + parse(EDITED, edit.sql, message.statement.types))
        replies.push(Reply(CLOSE, SKIP))
        replies.push(Reply(PARSE, SKIP, UNNAMED))


def _write_named_parse(server: Server, message: Message, out: Writer) -> None:
    """Prepare a client's named statement, or say so at once where the server connection holds it already."""
    statement = message.statement
    assert statement is not None
    if server.holds(statement):
        if server.replies.copying:
            write_stray(server, out)
        server.spared += 1
        message.mode = FAKE
        message.payload = PARSE_COMPLETE
    else:
        message.prepares = True
        closing = server.hold(statement)
        if closing:
            out.put(closing)
        out.put(statement.parse_message)
    server.replies.push(message)


def _write_refusal(server: Server, unit: Unit, message: Message, error: ClientError, out: Writer) -> None:
    """Make the transaction fail on the server too, and put the proxy's error in the place of the server's.

    A Sync alone would commit what stands before the refused message.
    """
    payload = error_response(error)
    if message.message_code == FE_QUERY:
        server.replies.push(Reply(QUERY, REPLACE, None, payload))
        server.name_unnamed(None)
        out.put(_FAILING_QUERY)
        return
    server.replies.push(Reply(BIND, REPLACE, None, payload))
    out.put(bind_text(_REFUSED, []))
    if unit.ended_by == FE_SYNC:
        server.replies.push(Reply(SYNC_REPLY, FORWARD))
        out.put(SYNC)
    elif unit.ended_by == FE_FLUSH:
        out.put(FLUSH)
