"""Texts with names of prepared statements in them, rewritten for a server: SQL-level PREPARE, EXECUTE, DEALLOCATE.

    PREPARE a AS SELECT 1   becomes  PREPARE _sluice_7 AS SELECT 1, and `a` stands for statement 7 once that succeeded
    EXECUTE a               becomes  EXECUTE _sluice_7, behind what prepares 7 where the server lacks it
    DEALLOCATE a            becomes  DEALLOCATE _sluice_8, an empty statement prepared for that: others may use 7

So arguments, errors and transactions are PostgreSQL's own. A name that stands for nothing is left as it is, and the
server says so. What the text does to the client's names takes effect statement by statement, as each completes.
"""

from __future__ import annotations

from typing import Final, final

from mypy_extensions import i64

from proxy.errors import ClientError, FeatureNotSupported
from proxy.query.cache import IntentCache
from proxy.query.intent import Intent
from proxy.query.naming import DEALLOCATE, DEALLOCATE_ALL, EXECUTE, PREPARE, Site, find_names
from proxy.query.parameters import Profile
from proxy.query.prepared import NO_TYPES, Statement, StatementCache
from proxy.wire.codes import HEADER
from proxy.wire.messages import command_complete, message

RESERVED: Final = b"_sluice_"
"""How names on servers begin; a client's name never reaches one."""


_NAMING_ROUTINES: Final = frozenset([b"exec_bind_message", b"FetchPreparedStatement"])
"""Where PostgreSQL says "prepared statement …": the number of values is wrong, or there is no such statement."""


class UndefinedStatement(ClientError):
    """A name that stands for no prepared statement, as PostgreSQL says it."""

    sqlstate = "26000"


@final
class Step:
    """What one statement of a text does to the client's names: `statement` is what it prepares or uses up."""

    def __init__(self, number: i64, verb: i64, name: bytes, statement: Statement) -> None:
        self.number: i64 = number
        self.verb: i64 = verb
        self.name = name
        self.statement = statement


@final
class Edit:
    """A rewritten text: what the server must hold before it runs, and what it does."""

    def __init__(self) -> None:
        self.sql = b""
        self.needs: list[Statement] = []
        # Statements of the client that it executes.
        self.runs: list[Statement] = []
        self.steps: list[Step] = []
        # Statements of the text that have completed.
        self.completed: i64 = 0
        # A need could not be prepared, and the client was told: what the text itself gives is not shown.
        self.failed = False
        self._names: list[tuple[bytes, bytes]] = []
        # The characters before a name that was exchanged in the new text, and how many longer it is.
        self._shifts: list[tuple[i64, i64]] = []

    def exchange(self, sql: bytes, copied: i64, site: Site, known: bytes) -> None:
        """Append sql[copied:site.end] with the name at `site` made `known`."""
        self.sql += sql[copied : site.start]
        before = len(self.sql.decode("utf-8", "replace"))
        longer = len(known) - len(sql[site.start : site.end].decode("utf-8", "replace"))
        self._shifts.append((before, longer))
        self.sql += known
        self._names.append((known, site.name))

    def retell(self, error: bytes) -> bytes:
        """Return an ErrorResponse about the rewritten text as one about the client's own."""
        # One without a field has nothing to tell, and no NUL: compiled, a slice that ends before it begins is an error.
        if len(error) <= HEADER:
            return error
        fields = error[HEADER:-1].split(b"\0")
        for at, field in enumerate(fields):
            if field[:1] == b"P" and field[1:].isdigit():
                fields[at] = b"P%d" % self._position(int(field[1:]))
            elif field[:1] in (b"M", b"D", b"H"):
                for known, name in self._names:
                    field = field.replace(b'"' + known + b'"', b'"' + name + b'"')
                fields[at] = field
        return message(error[0], b"\0".join(fields) + b"\0")

    def _position(self, position: i64) -> int:
        """Return where in the client's text the 1-based character `position` of the rewritten one stands."""
        moved: i64 = 0
        for before, longer in self._shifts:
            if position > before + 1:
                moved += longer
        return int(position - moved)


def in_clients_name(error: bytes, known: bytes, name: bytes) -> bytes:
    """Return the ErrorResponse to a Bind or Describe with the server's name of its statement made the client's.

    Where a message names the statement is told by the routine that raised it, which is never translated: what a
    client itself wrote, a value say, may read the same elsewhere.
    """
    fields = error[HEADER:-1].split(b"\0")
    if not any(field[:1] == b"R" and field[1:] in _NAMING_ROUTINES for field in fields):
        return error
    told = [field.replace(known, name) if field[:1] == b"M" else field for field in fields]
    return message(error[0], b"\0".join(told) + b"\0")


def tag_of(step: Step) -> bytes:
    """Return the CommandComplete that a client sees for `step`, b"" where it's the server's own."""
    return command_complete(b"DEALLOCATE ALL") if step.verb == DEALLOCATE_ALL else b""


def rewrite(
    sql: bytes,
    intent: Intent,
    named: dict[bytes, Statement],
    intents: IntentCache,
    shared: StatementCache,
    profile: Profile | None,
) -> Edit:
    """Rewrite `sql` for a client whose names are `named`; `profile` as in read_message().

    Raises FeatureNotSupported and UndefinedStatement.
    """
    sites = find_names(sql, intent.statements)
    if sites is None:
        raise FeatureNotSupported(
            "PREPARE, EXECUTE and DEALLOCATE are not supported in a text like this",
            hint="Send them as statements of their own.",
        )
    edit = Edit()
    names = dict(named) if intent.statements != 1 else named
    copied: i64 = 0
    for site in sites:
        statement = names.get(site.name)
        verb = site.verb
        if verb == PREPARE and statement is None:
            text = sql[site.statement_start : site.statement_end]
            rest = sql[site.end : site.statement_end]
            statement = shared.prepared(rest, intents.lookup(text), profile)
            edit.steps.append(Step(site.statement, verb, site.name, statement))
            if names is not named:
                names[site.name] = statement
        elif verb == DEALLOCATE_ALL or (verb == DEALLOCATE and statement is not None):
            statement = shared.get(b"", NO_TYPES, intent, None)
            edit.steps.append(Step(site.statement, verb, site.name, statement))
            edit.needs.append(statement)
            if names is not named:
                if verb == DEALLOCATE:
                    del names[site.name]
                else:
                    names.clear()
        elif statement is None:
            if site.name.startswith(RESERVED):
                raise UndefinedStatement(
                    f'prepared statement "{site.name.decode("utf-8", "replace")}" does not exist'
                )
            continue
        else:
            # To be executed; or prepared once more, which fails.
            if not any(step.statement is statement for step in edit.steps):
                edit.needs.append(statement)
            if verb == EXECUTE:
                edit.runs.append(statement)
        edit.exchange(sql, copied, site, statement.name)
        copied = site.end
    edit.sql += sql[copied:]
    return edit
