"""What roles and the database preset for new sessions (pg_db_role_setting)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from proxy.preflight.facts import Facts
from proxy.preflight.finding import ERROR, WARNING, Finding, Row, literal, name
from proxy.preflight.wanted import Logins

TOPIC: Final = "settings"

# What one session could do to another's, or to what the policies rest on.
_GRAVE: Final = frozenset(
    (
        "debug_print_parse",
        "debug_print_plan",
        "debug_print_rewritten",
        "event_triggers",
        "local_preload_libraries",
        "role",
        "row_security",
        "search_path",
        "session_authorization",
        "session_preload_libraries",
        "session_replication_role",
        "track_activities",
    )
)


def check(facts: Facts, logins: Logins) -> Iterator[Finding]:
    """Yield presets of ours that are missing, and others' that are there."""
    wanted = logins.settings()
    present = {row["role"] for row in facts.roles}
    found = {(row["role"], row["setting"]): row["value"] for row in facts.settings if row["database"] is None}
    for login, settings in wanted.items():
        for setting, value in settings.items():
            if login in present and found.get((login, setting)) != value:
                severity = ERROR if setting == "track_activities" else WARNING
                mend = f"ALTER ROLE {name(login)} SET {setting} = {value};"
                yield Finding(severity, TOPIC, f"{login} doesn't start with {setting} = {value}", mend)
    for row in facts.settings:
        if row["database"] is not None or row["setting"] not in wanted.get(row["role"], {}):
            yield _foreign(row)


def _foreign(row: Row) -> Finding:
    role = f"ROLE {name(row['role'])}" if row["role"] is not None else "ROLE ALL"
    place = f" IN DATABASE {name(row['database'])}" if row["database"] is not None else ""
    target = f"DATABASE {name(row['database'])}" if row["role"] is None and place else f"{role}{place}"
    grave = row["setting"] in _GRAVE or row["setting"].startswith("sluice.")
    severity = ERROR if grave else WARNING
    what = f"{target.lower() if row['role'] is None else row['role'] + place.lower()} starts with"
    value = literal(row["value"])
    # A custom setting's name may need quotes around each of its parts.
    setting = ".".join(map(name, row["setting"].split(".")))
    return Finding(
        severity,
        TOPIC,
        f"{what} {row['setting']} = {value}, not by setup",
        f"ALTER {target} RESET {setting};",
    )
