"""Which settings a server connection needs before it serves a session."""

from __future__ import annotations

import re
from typing import Final

from proxy.query.parameters import Profile, reported_name
from proxy.upstream.server import Server
from proxy.wire.messages import query

_NAME: Final = re.compile(r"[a-z_][a-z0-9_$.]*\Z")


def settings_for(server: Server, profile: Profile, empty: Profile) -> list[tuple[str, str]] | None:
    """Return the settings that turn what `server` has into `profile`.

    None where the connection has a setting that the session does not, and whose default is not known.
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
    return settings


def default_for(server: Server, name: str) -> str | None:
    """Return the value that `name` had when the connection was opened, None where the server did not report it."""
    reported = reported_name(name)
    if reported is None:
        return None
    value = server.defaults.get(reported.encode())
    return value.decode("utf-8", "replace") if value is not None else None


def readable(touched: dict[str, bool]) -> list[str]:
    """Return those of the settings `touched` that are read back; "all", and names of other letters, are not."""
    return [name for name in touched if name != "all" and _NAME.match(name)]


def read_back_query(names: list[str]) -> bytes:
    """Return a Query that reads the settings `names`, in one row."""
    columns = [f"pg_catalog.current_setting('{name}', true)" for name in names]
    return query(("SELECT " + ", ".join(columns)).encode())
