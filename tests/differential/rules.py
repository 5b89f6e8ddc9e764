"""Where a client may tell the proxy from PostgreSQL: each difference has a name, a reason and a shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True)
class Rule:
    """A documented difference: why it is there, and what the proxy's side of a step that differs has to show."""

    reason: str
    proxy: str
    always: bool = True  # False where it depends on what other clients did meanwhile
    absent: tuple[str, ...] = ()  # the settings of stages.py in which nothing may differ by this rule

    def allows(self, proxy: list[str]) -> bool:
        """Tell whether the proxy's lines are what this rule speaks of."""
        return re.search(self.proxy, "\n".join(proxy)) is not None


LEFT_OUT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "process ids": "BackendKeyData and a NotificationResponse's process id name another process in any session",
        "login": "session_authorization is the user name that the client gave: a key's id, or the role",
        "source": "file, line and routine of an error: the proxy's own errors come from no source of PostgreSQL's",
        "order of ParameterStatus": "of several in a row it is that of a hash table",
        "own OIDs": "tables and types of a case's own get a new OID each time",
        "row positions": "where in a table's file a row stands",
        "temporary schema": "its number is the backend's",
    }
)
"""What the transcripts leave out: it differs between any two sessions of PostgreSQL too."""

RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        "function-call": Rule(
            "FunctionCall is refused: what a function does can't be told from its OID",
            r"ErrorResponse ERROR 0A000",
        ),
        "identity-refusals": Rule(
            "SET ROLE and SET SESSION AUTHORIZATION are refused: the login belongs to all sessions of a pool",
            r"ErrorResponse ERROR 42501",
        ),
        "startup-refusals": Rule(
            "startup parameters are tried, or refused, before AuthenticationOk; unknown ones aren't passed on",
            r"ErrorResponse FATAL (22023|0A000)",
        ),
        "pins": Rule(
            "of a pool's server connections one is never pinned, so that the others have a way",
            r"ErrorResponse ERROR 53300 'too many sessions keep their server connection",
            absent=("session",),
        ),
        "currval": Rule(
            "currval and lastval ask the server connection of the last nextval, unless others used it since",
            r"ErrorResponse ERROR 55000",
            always=False,
            absent=("session",),
        ),
        "ddl": Rule(
            "DDL, DO and VACUUM need a key with the permission admin",
            r"ErrorResponse ERROR 42501 'this needs an API key",
        ),
        "columns-change": Rule(
            "a statement whose columns have changed since is parsed anew on a connection that lacks it, and gives them",
            r"DataRow '1', NULL",
            always=False,
        ),
        "long-named-statement": Rule(
            "a named statement's text is kept for as long as the session, so it may have 64 KiB at most",
            r"ErrorResponse ERROR 0A000 'the text of a named prepared statement",
        ),
        "malformed": Rule(
            "a message that isn't well formed ends the session; PostgreSQL tells the error and goes on",
            r"ErrorResponse FATAL 08P01|^\(closed\)|^$",
        ),
        "long-names": Rule(
            "names of statements count as a whole; for PostgreSQL two are the same if their first 63 bytes are",
            r"ParseComplete",
        ),
        "failed-describe": Rule(
            "in a failed transaction a statement that its server connection lacks can't be parsed there",
            r"ErrorResponse ERROR 25P02",
            always=False,
            absent=("session",),
        ),
        "host": Rule(
            "a read is served by a replica, and a function may ask which host it is",
            r"DataRow 't'",
            always=False,
        ),
        "lag": Rule(
            "a replica is a moment behind what other sessions have written; one's own writes are seen at once",
            r"DataRow ",
            always=False,
        ),
        "standby": Rule(
            "a READ ONLY transaction runs on a replica where there is one, and PostgreSQL refuses some things there",
            r"ErrorResponse ERROR (0A000|25006|25P02|55000)|CommandComplete 'ROLLBACK'",
            always=False,
        ),
        "reset-in-a-string": Rule(
            "within one string, what follows a RESET has the server's value, not the startup message's",
            r"DataRow 'UTC'",
        ),
        "stray": Rule(
            "what has no place within a COPY may be told as another type of message: a Close is sent for it",
            r"unexpected message type 0x43 during COPY",
            always=False,
        ),
    }
)
