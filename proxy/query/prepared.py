"""Prepared statements that follow a client from one server connection to the next.

A client's name stands for a Statement; equal statements of all clients share one, whose name on the servers is
made from an id that is never reused. Each server connection holds the statements it has seen.

Literals are folded when a statement is parsed: '2020-01-01'::timestamptz is another instant under another
TimeZone. So statements are equal only if text, parameter types and the session parameters they are parsed under are.
"""

from __future__ import annotations

import re
from typing import Final, final

from mypy_extensions import i64

from proxy.query.intent import Intent
from proxy.query.parameters import Profile
from proxy.query.traceparent import traceparent_of
from proxy.wire.messages import bind_text, close_portal, close_statement, execute, parse

MAX_BYTES: Final = 16 * 1024 * 1024
"""Statement texts that are shared at most; older ones stay with the sessions that use them."""

NO_TYPES: Final = b"\0\0"
"""No parameter types, as on the wire."""

_MAKER: Final = b"_sluice_prepare"
"""The statement and portal by which a SQL-level PREPARE is executed once more."""

_QUOTED: Final = re.compile(rb"'|\$[^0-9]")
"""Where a string constant may begin; parameters are $1, and a $ in a name is taken for one as well."""

_OVERHEAD: Final = 400
"""Bytes that an entry takes beside its texts, roughly."""


@final
class Statement:
    """One SQL text with its parameter types, under the name that servers know.

    `profile` holds the session parameters under which it is parsed; None where they are not known, or where no other
    session may share it.
    """

    def __init__(
        self, number: i64, sql: bytes, types: bytes, intent: Intent, profile: Profile | None = None
    ) -> None:
        self.number: i64 = number
        self.name: bytes = b"_sluice_%d" % number
        self.sql = sql
        self.types = types
        self.intent = intent
        self.profile: Profile | None = profile
        self.parse_message: bytes = parse(self.name, sql, types)
        # Whose trace it belongs to, as its text says.
        self.traceparent: bytes = traceparent_of(sql)
        # It was prepared by SQL: `sql` is the PREPARE, and parse_message is five messages, answered by these.
        self.by_sql = False
        # It has run once: some server has taken it.
        self.proven = False
        # Parsed again it is the same: it has no constant that stands for the time, or for what exists by that name
        # ('now'::timestamptz, 'orders'::regclass), as these are looked up when it is parsed.
        self.is_steady: bool = profile is not None and _QUOTED.search(sql) is None

    def unnamed_message(self) -> bytes:
        """Return the Parse that makes this the unnamed statement."""
        return parse(b"", self.sql, self.types)


@final
class StatementCache:
    """All statements in use, by text and parameter types; the least recently parsed goes first."""

    def __init__(self, max_bytes: i64 = MAX_BYTES) -> None:
        self.max_bytes: i64 = max_bytes
        self.bytes: i64 = 0
        # Statements that were made, and those that were found among them.
        self.made: i64 = 0
        self.shared: i64 = 0
        # Parse and Bind messages of clients, those with a name for the statement.
        self.client_parses: i64 = 0
        self.binds: i64 = 0
        # How often everything was made anew.
        self.renewals: i64 = 0
        self._statements: dict[bytes, Statement] = {}

    def get(self, sql: bytes, types: bytes, intent: Intent, profile: Profile | None) -> Statement:
        """Return the statement with this text and these types (count and OIDs as on the wire).

        Without a `profile` it is a new one, which is shared with nobody.
        """
        if profile is None:
            self.made += 1
            return Statement(self.made, sql, types, intent)
        key = sql + b"\0" + types + profile.parse_key
        known = self._statements.get(key)
        if known is not None and known.intent is intent:
            self.shared += 1
            return known
        self.made += 1
        statement = Statement(self.made, sql, types, intent, profile)
        if known is None:
            self.bytes += 2 * len(key) + _OVERHEAD
        self._statements[key] = statement
        while self.bytes > self.max_bytes and len(self._statements) > 1:
            oldest = next(iter(self._statements))
            del self._statements[oldest]
            self.bytes -= 2 * len(oldest) + _OVERHEAD
        return statement

    def prepared(self, rest: bytes, intent: Intent, profile: Profile | None) -> Statement:
        """Return a new statement for a SQL-level PREPARE; `rest` is what stands behind its name."""
        self.made += 1
        statement = Statement(self.made, b"", NO_TYPES, intent, profile)
        statement.sql = b"PREPARE " + statement.name + rest
        statement.by_sql = True
        statement.parse_message = (
            close_statement(_MAKER)
            + parse(_MAKER, statement.sql)
            + bind_text(_MAKER, [])
            + execute(_MAKER)
            + close_portal(_MAKER)
        )
        return statement

    def entries(self) -> int:
        """Return how many statements can be shared."""
        return len(self._statements)

    def renew(self) -> None:
        """Share nothing that was made so far: tables have changed, and what is parsed from now on may differ.

        Who has a statement keeps it, and learns from the server that its result has changed, as PostgreSQL has it;
        who prepares the same text now gets a new one.
        """
        self._statements.clear()
        self.bytes = 0
        self.renewals += 1
