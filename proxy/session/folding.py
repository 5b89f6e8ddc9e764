"""Statements parsed under their own settings within a transaction that has changed them since.

PostgreSQL folds literals when it parses: '2026-01-01'::timestamptz is another instant behind SET LOCAL TimeZone. What a
client prepared before that keeps its meaning, also where its server connection has to parse it now: behind a
savepoint the statement's own settings are set, it is parsed, and the savepoint is rolled back and released. Prepared
statements outlive that, settings don't. Of this nothing shows: values that are the same again at ReadyForQuery aren't
reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from proxy.query.intent import TRANSACTION
from proxy.query.parameters import FOLDING, Profile
from proxy.query.prepared import Statement
from proxy.session.sending import UNNAMED, Writer, parse_again, write_between, write_command, write_parse
from proxy.session.settings import default_for
from proxy.session.unit import Unit
from proxy.upstream.server import Server
from proxy.wire.codes import FE_BIND, FE_QUERY, IN_TRANSACTION
from proxy.wire.messages import SYNC
from proxy.wire.reply import SKIP, Reply
from proxy.wire.reply import SYNC as SYNC_REPLY

_SAVEPOINT: Final = b"_sluice_folding"


def lacking(server: Server, unit: Unit) -> list[Statement]:
    """Return the statements that `unit` executes, that the connection lacks, and whose settings are known.

    None are returned where the unit ends the transaction, or sets what its first statement has to set.
    """
    found: list[Statement] = []
    message = unit.first
    while message is not None:
        statement = message.statement
        intent = message.intent if statement is None else statement.intent
        if intent is not None and intent.kind == TRANSACTION:
            return []
        edit = message.edit
        needs = edit.needs if edit is not None else []
        if statement is not None and edit is None and message.message_code == FE_BIND and message.name:
            needs = [statement]
        for need in needs:
            if need.profile is not None and need not in found and not server.holds(need):
                found.append(need)
        message = message.following
    return found


def parse_apart(
    server: Server, unit: Unit, statements: list[Statement], touched: dict[str, bool], out: Writer
) -> None:
    """Parse `statements` in front of `unit`, whose transaction may have changed the settings `touched` so far.

    Where there are any, nothing may be outstanding; a statement whose settings can't be restored is left as it is.
    """
    last = server.replies.tail
    for statement in statements:
        if not touched:
            parse_again(server, statement, out, True)
            continue
        if server.replies.status != IN_TRANSACTION:
            return
        settings = _settings_of(statement, server, touched)
        if settings is None:
            continue
        closing = server.hold(statement)
        if closing:
            out.put(closing)
        if settings:
            write_command(server, b"SAVEPOINT " + _SAVEPOINT, out, UNNAMED)
            write_between(server, settings, out, UNNAMED)
        write_parse(server, statement, out)
        if settings:
            write_command(server, b"ROLLBACK TO SAVEPOINT " + _SAVEPOINT, out, UNNAMED)
            write_command(server, b"RELEASE SAVEPOINT " + _SAVEPOINT, out, UNNAMED)
    if unit.ended_by == FE_QUERY and server.replies.tail is not last:
        out.put(SYNC)
        server.replies.push(Reply(SYNC_REPLY, SKIP))


def _settings_of(
    statement: Statement, server: Server, touched: Iterable[str]
) -> list[tuple[str, str]] | None:
    """Return the settings under which `statement` is to be parsed and the connection may not be; None if unknown."""
    theirs = statement.profile
    ours: Profile | None = server.profile
    if theirs is None or ours is None:
        return None
    names = set(touched)
    names.update([name for name in ours.names | theirs.names if ours.get(name) != theirs.get(name)])
    settings: list[tuple[str, str]] = []
    for name in sorted(names & FOLDING):
        value = theirs.get(name)
        if value is None:
            value = default_for(server, name)
        if value is None or name == "client_encoding":
            return None
        settings.append((name, value))
    return settings
