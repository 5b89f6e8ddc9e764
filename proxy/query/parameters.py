"""Session parameters that a client may choose, as interned profiles.

A profile is the set of parameters in which a session differs from a fresh server connection. Two sessions with
the same choices share one Profile object, so that "does this connection fit?" is one comparison of identities.
"""

from __future__ import annotations

import re
from typing import Final, final

from proxy.errors import FeatureNotSupported, InsufficientPermissions, ProtocolViolation

ALLOWED: Final = frozenset(
    {
        "application_name",
        "backslash_quote",
        "bytea_output",
        "client_encoding",
        "client_min_messages",
        "cursor_tuple_fraction",
        "datestyle",
        "default_transaction_deferrable",
        "default_transaction_isolation",
        "enable_hashjoin",
        "enable_mergejoin",
        "enable_nestloop",
        "enable_seqscan",
        "extra_float_digits",
        "geqo",
        "gin_fuzzy_search_limit",
        "idle_in_transaction_session_timeout",
        "intervalstyle",
        "jit",
        "join_collapse_limit",
        "lc_monetary",
        "lc_numeric",
        "lc_time",
        "lock_timeout",
        "plan_cache_mode",
        "quote_all_identifiers",
        "search_path",
        "standard_conforming_strings",
        "statement_timeout",
        "synchronous_commit",
        "timezone",
        "timezone_abbreviations",
        "transform_null_equals",
        "work_mem",
        "xmlbinary",
        "xmloption",
    }
)
"""Parameters that a StartupMessage may set: those that change how a session reads and writes values, its
timeouts and its plans. None of them changes who it is or what it may do."""

_CUSTOM: Final = re.compile(r"[a-z_][a-z0-9_$]*\.[a-z_][a-z0-9_$.]*\Z")
_RESERVED: Final = frozenset({"user", "database", "options", "replication"})

_REPORTED: Final = {
    "application_name": "application_name",
    "client_encoding": "client_encoding",
    "datestyle": "DateStyle",
    "default_transaction_read_only": "default_transaction_read_only",
    "in_hot_standby": "in_hot_standby",
    "integer_datetimes": "integer_datetimes",
    "intervalstyle": "IntervalStyle",
    "is_superuser": "is_superuser",
    "scram_iterations": "scram_iterations",
    "search_path": "search_path",
    "server_encoding": "server_encoding",
    "server_version": "server_version",
    "session_authorization": "session_authorization",
    "standard_conforming_strings": "standard_conforming_strings",
    "timezone": "TimeZone",
}


_WITHOUT_MEANING: Final = frozenset(
    {
        "application_name",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
        "lock_timeout",
        "sluice.pool",
        "statement_timeout",
        "transaction_timeout",
    }
)
"""Parameters that change nothing in what a statement means."""


FOLDING: Final = frozenset(
    {
        "array_nulls",
        "backslash_quote",
        "client_encoding",
        "datestyle",
        "escape_string_warning",
        "intervalstyle",
        "lc_monetary",
        "lc_numeric",
        "lc_time",
        "search_path",
        "standard_conforming_strings",
        "timezone",
        "timezone_abbreviations",
        "transform_null_equals",
        "xmlbinary",
        "xmloption",
    }
)
"""Parameters that the lexer, the parser and the input functions of PostgreSQL's own types read."""


@final
class Profile:
    """Parameter values by lower-cased name, immutable and interned."""

    def __init__(self, values: tuple[tuple[str, str], ...]) -> None:
        self.values = values
        self.names = frozenset([name for name, _ in values])
        # What of it a statement's meaning may depend on when it is parsed: its literals are folded then.
        self.parse_key = "".join(
            [f"\0{name}={value}" for name, value in values if name not in _WITHOUT_MEANING]
        ).encode("utf-8", "replace")

    def get(self, name: str) -> str | None:
        """Return the value of `name`, None where the profile does not set it."""
        for known, value in self.values:
            if known == name:
                return value
        return None


@final
class Profiles:
    """Hands out one Profile object for each set of values."""

    MAX: Final = 10_000
    """Profiles that are kept; beyond it the table starts anew, which costs only a few repeated settings."""

    def __init__(self) -> None:
        self.empty = Profile(())
        self._known: dict[tuple[tuple[str, str], ...], Profile] = {(): self.empty}

    def of(self, values: dict[str, str]) -> Profile:
        """Return the profile with these values."""
        key = tuple(sorted(values.items()))
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= self.MAX:
                self._known = {(): self.empty}
            known = Profile(key)
            self._known[key] = known
        return known


def from_startup(parameters: dict[str, str], options: dict[str, str]) -> tuple[dict[str, str], str]:
    """Return the session parameters that a StartupMessage asks for, and the pool, "" where none.

    `options` are those parsed from its `options` parameter; a parameter of its own counts before them, as in
    PostgreSQL. Raises FeatureNotSupported or InsufficientPermissions for what may not be set.
    """
    values: dict[str, str] = {}
    pool = ""
    asked = {name.lower(): value for name, value in options.items()}
    for name, value in parameters.items():
        if name not in _RESERVED and not name.startswith("_pq_."):
            asked[name.lower()] = value
    for name, value in asked.items():
        if name == "sluice.pool":
            pool = value
        elif name.startswith("sluice."):
            raise InsufficientPermissions(f'parameter "{name}" is set by the proxy and cannot be changed')
        elif name in ALLOWED or _CUSTOM.match(name):
            values[name] = value
        else:
            raise FeatureNotSupported(
                f'startup parameter "{name}" is not supported through the proxy',
                hint="Use SET after connecting.",
            )
    for value in values.values():
        if "\0" in value or len(value) > 4096:
            raise ProtocolViolation("invalid value of a startup parameter")
    return values, pool


HIDDEN: Final = frozenset(
    [b"in_hot_standby", b"default_transaction_read_only", b"session_authorization", b"is_superuser"]
)
"""What a server reports of itself and of the pool's login: it changes with routing and is none of a client's."""


def reported_name(name: str) -> str | None:
    """Return `name` as ParameterStatus spells it, None where servers do not report it."""
    return _REPORTED.get(name)
