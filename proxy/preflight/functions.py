"""Functions that run with their owner's rights, and who may call what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from proxy.preflight.facts import Facts
from proxy.preflight.finding import ERROR, WARNING, Finding, Row, name
from proxy.preflight.wanted import CONTROL, DEFINER, OWNER

TOPIC: Final = "functions"

# With these, what a function reads could be shown to whoever calls it.
_QUIET: Final = {
    "client_min_messages": "notice",
    "debug_print_parse": "off",
    "debug_print_rewritten": "off",
    "debug_print_plan": "off",
}


def check(facts: Facts) -> Iterator[Finding]:
    """Yield what is wrong with functions, and with the grants on them."""
    for row in facts.functions:
        yield from _public(row)
        if row["definer"]:
            yield from _owner(row)
            yield from _path(row)
            yield from _quiet(row)
    yield from _to_come(facts)
    yield from statistics(facts)
    for row in facts.callable:
        if not row["may"]:
            mend = f"GRANT EXECUTE ON FUNCTION {row['function']} TO {row['grantee']};"
            yield Finding(ERROR, TOPIC, f"{row['grantee']} may not call {row['function']}", mend)
    for row in facts.extensions:
        if row["by_public"]:
            mend = f"REVOKE EXECUTE ON FUNCTION {', '.join(row['by_public'])} FROM PUBLIC;"
            what = f"PUBLIC may use {row['extension']}, whose connections outlive a client's session"
            yield Finding(WARNING, TOPIC, what, mend)


def _public(row: Row) -> Iterator[Finding]:
    ours = row["owner"] in (OWNER, DEFINER) or row["schema"] == "sluice"
    if row["by_public"] and (ours or row["definer"]):
        mend = f"REVOKE EXECUTE ON {row['kind']} {row['function']} FROM PUBLIC;"
        severity = ERROR if ours else WARNING
        yield Finding(severity, TOPIC, f"PUBLIC may call {row['function']} of {row['owner']}", mend)


def _owner(row: Row) -> Iterator[Finding]:
    if row["owner"] in (OWNER, DEFINER):
        return
    ours = row["schema"] == "sluice"
    if not row["open_to"] and not ours:
        return
    mend = f"ALTER {row['kind']} {row['function']} OWNER TO {DEFINER};"
    unbound = "whom no policy binds" if row["owner_unbound"] else f"not {DEFINER}"
    what = f"{row['function']} runs with the rights of its owner {row['owner']}, {unbound}"
    yield Finding(ERROR if ours or row["owner_unbound"] else WARNING, TOPIC, what, mend)


def _path(row: Row) -> Iterator[Finding]:
    settings = _settings(row)
    path = settings.get("search_path")
    if path is None or path.rpartition(",")[2].strip() != "pg_temp":
        mend = f"ALTER {row['kind']} {row['function']} SET search_path = pg_catalog, pg_temp;"
        fault = "no search_path of its own" if path is None else "a search_path that doesn't end with pg_temp"
        yield Finding(ERROR, TOPIC, f"{row['function']} runs with its owner's rights and has {fault}", mend)


def _quiet(row: Row) -> Iterator[Finding]:
    """Yield what a function beside the keys lacks."""
    if row["schema"] != "sluice":
        return
    settings = _settings(row)
    for setting, value in _QUIET.items():
        if settings.get(setting) != value:
            mend = f"ALTER {row['kind']} {row['function']} SET {setting} = {value};"
            yield Finding(ERROR, TOPIC, f"{row['function']} doesn't set {setting} = {value}", mend)


def _settings(row: Row) -> dict[str, str]:
    pairs = (each.partition("=") for each in row["settings"])
    return {setting: value for setting, _, value in pairs}


def _to_come(facts: Facts) -> Iterator[Finding]:
    """Yield that new functions will be open to PUBLIC, as PostgreSQL has it where nothing is said."""
    for owner in (OWNER, DEFINER):
        if not any(row["role"] == owner for row in facts.roles):
            continue
        rows = [row for row in facts.default_grants if row["owner"] == owner and row["kind"] == "f"]
        everywhere = [row for row in rows if row["schema"] is None]
        for row in rows if everywhere else [{"schema": None, "grantee": "PUBLIC"}]:
            if row["grantee"] == "PUBLIC":
                place = f" IN SCHEMA {name(row['schema'])}" if row["schema"] is not None else ""
                mend = (
                    f"ALTER DEFAULT PRIVILEGES FOR ROLE {owner}{place}"
                    " REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;"
                )
                yield Finding(ERROR, TOPIC, f"PUBLIC may call each new function of {owner}", mend)


def statistics(facts: Facts) -> Iterator[Finding]:
    """Yield what shows everybody the statements of others."""
    for row in facts.statistics:
        right = "EXECUTE ON FUNCTION" if row["kind"] == "FUNCTION" else "SELECT ON"
        mend = (
            f"REVOKE {right} {row['name']} FROM PUBLIC;\n"
            f"GRANT {right} {row['name']} TO {CONTROL}, pg_monitor;"
        )
        yield Finding(ERROR, TOPIC, f"{row['name']} shows PUBLIC the statements of others", mend)
