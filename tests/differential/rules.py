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
        ),
        "currval": Rule(
            "currval and lastval ask the server connection of the last nextval, unless others used it since",
            r"ErrorResponse ERROR 55000",
            always=False,
        ),
        "ddl": Rule(
            "DDL, DO and VACUUM need a key with the permission admin",
            r"ErrorResponse ERROR 42501 'this needs an API key",
        ),
        "long-named-statement": Rule(
            "a named statement's text is kept for as long as the session, so it may have 64 KiB at most",
            r"ErrorResponse ERROR 0A000 'the text of a named prepared statement",
        ),
    }
)
