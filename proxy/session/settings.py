"""Which settings a server connection needs before it serves a session, and what it is asked afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, final

from proxy.query.facts import POOL_PARAMETER
from proxy.query.parameters import Profile, reported_name
from proxy.upstream.server import Server
from proxy.wire.messages import query

_NAME: Final = re.compile(r"[a-z_][a-z0-9_$.]*\Z")

# Defaults of what neither a ParameterStatus nor pg_settings tells.
_FIXED_DEFAULTS: Final = {"role": "none", POOL_PARAMETER: ""}

# Whether what pins a session is still there. Qualified, operators too: the client chooses the search_path.
_PROBES: Final = {
    "listen": "EXISTS (SELECT 1 FROM pg_catalog.pg_listening_channels())",
    # What lies in the schema of its temporary objects, through an index (2615: pg_namespace in pg_class).
    "temporary table": "EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.refclassid OPERATOR(pg_catalog.=) 2615"
    " AND d.refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema())",
    "hold cursor": "EXISTS (SELECT 1 FROM pg_catalog.pg_cursors c WHERE c.is_holdable)",
    "advisory lock": "EXISTS (SELECT 1 FROM pg_catalog.pg_locks l WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory'"
    " AND l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid())",
    "prepare": "EXISTS (SELECT 1 FROM pg_catalog.pg_prepared_statements p WHERE p.from_sql"
    " AND NOT pg_catalog.starts_with(p.name, '_sluice_'))",
}

LASTING: Final = frozenset({"load", "dblink", "setseed"})
"""Pins that DISCARD ALL does not end."""


def settings_for(server: Server, profile: Profile, empty: Profile) -> list[tuple[str, str]] | None:
    """Return the settings that turn what `server` has into `profile`.

    None where the connection has a setting that the session does not, and whose default is not known; or where it
    would read a value in another encoding than it is written in.
    """
    held = server.profile
    if held is None:
        held = empty
    if held is profile:
        return []
    return settings_between(server, held, profile)


def settings_between(server: Server, held: Profile, profile: Profile) -> list[tuple[str, str]] | None:
    """Return the settings that turn `held`, the profile that `server` has, into `profile`; None as above."""
    settings: list[tuple[str, str]] = []
    for name, value in profile.values:
        if held.get(name) != value:
            settings.append((name, value))
    for name in held.names:
        if name not in profile.names:
            default = default_for(server, name)
            if default is None:
                return None
            settings.append((name, default))
    if held.get("client_encoding") not in (None, "UTF8") and not all(
        value.isascii() for _, value in settings
    ):
        return None
    return settings


def default_for(server: Server, name: str) -> str | None:
    """Return the value that `name` had when the connection was opened, None where that is not known."""
    fixed = _FIXED_DEFAULTS.get(name)
    if fixed is not None:
        return fixed
    value = server.defaults.get((reported_name(name) or name).encode())
    return value.decode("utf-8", "replace") if value is not None else None


def probed(pin: str) -> bool:
    """Tell whether a server can be asked if this reason for a pin still holds."""
    return pin in _PROBES


@final
class Look:
    """What a session asks its server connection at the end of a transaction, and the answer.

    Values of settings are not what statements said but what the server has then: that gets rollbacks,
    savepoints and merged values right. `touched` tells of each name whether it may have been reset; `pins` are
    reasons for a pin.
    """

    def __init__(self, server: Server, touched: dict[str, bool], pins: Iterable[str]) -> None:
        # An identity is nothing that a session carries along.
        self.touched = {
            name: touched[name] for name in touched if _NAME.match(name) and name != "sluice.identity"
        }
        # Those of which it matters where the value comes from, or whose default has to be learned. What isn't
        # reported is told with a unit (64MB), but its default without (8192): only the origin tells them apart.
        self.origins = [
            name
            for name in self.touched
            if "." not in name
            and name not in _FIXED_DEFAULTS
            and (self.touched[name] or reported_name(name) is None or default_for(server, name) is None)
        ]
        self.pins = [pin for pin in pins if pin in _PROBES]
        self.row: list[bytes | None] = []

    @property
    def needed(self) -> bool:
        """Tell whether there is anything to ask."""
        return bool(self.touched or self.pins)

    def query(self) -> bytes:
        """Return a Query that is answered with one row."""
        # In hexadecimal, so that neither client_encoding nor bytea_output matters.
        columns = [
            f"pg_catalog.encode(pg_catalog.convert_to(pg_catalog.current_setting('{name}', true), 'UTF8'), 'hex')"
            for name in self.touched
        ]
        columns += [
            "(SELECT pg_catalog.concat(s.source, '=', s.reset_val) FROM pg_catalog.pg_settings s"
            f" WHERE pg_catalog.lower(s.name) OPERATOR(pg_catalog.=) '{name}')"
            for name in self.origins
        ]
        columns += [_PROBES[pin] for pin in self.pins]
        return query(("SELECT " + ", ".join(columns)).encode())

    @property
    def answered(self) -> bool:
        """Tell whether the server gave the row."""
        return len(self.row) == len(self.touched) + len(self.origins) + len(self.pins)

    def gone(self) -> list[str]:
        """Return the reasons for a pin that no longer hold."""
        first = len(self.touched) + len(self.origins)
        return [pin for pin, held in zip(self.pins, self.row[first:], strict=True) if held == b"f"]

    def apply(
        self, server: Server, profile: Profile, start: Profile, empty: Profile
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Return what the session's settings are now, and those that the server connection has.

        They differ where a setting was reset: the session's value is then that of its `start`, which the
        server does not know. Defaults that the answer tells are kept with the server.
        """
        wanted = dict(profile.values)
        actual = dict((server.profile or empty).values)
        origins: dict[str, str] = {}
        first = len(self.touched)
        for name, told in zip(self.origins, self.row[first : first + len(self.origins)], strict=True):
            if told is not None:
                source, _, default = told.decode("utf-8", "replace").partition("=")
                origins[name] = source
                server.defaults.setdefault((reported_name(name) or name).encode(), default.encode())
        for name, value in zip(self.touched, self.row[:first], strict=True):
            text = _told(value)
            if text is None:
                continue
            default_value = default_for(server, name)
            if name in origins:
                is_reset = origins[name] != "session"
            else:
                is_reset = self.touched[name] and text == (default_value or "")
            if is_reset:
                actual.pop(name, None)
                wanted.pop(name, None)
                begun = start.get(name)
                if begun is not None:
                    wanted[name] = begun
            elif name in wanted or name in actual or text != default_value:
                wanted[name] = actual[name] = text
        return wanted, actual


def _told(value: bytes | None) -> str | None:
    """Return a value that was asked for in hexadecimal; None where there is none."""
    try:
        return None if value is None else bytes.fromhex(value.decode("ascii")).decode()
    except ValueError:
        return None
