"""Privileges on tables, schemas and the database, of the pools' roles, the control login and PUBLIC."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Final

from proxy.preflight.facts import Facts
from proxy.preflight.finding import ERROR, WARNING, Finding, Row, name
from proxy.preflight.roles import pool_roles
from proxy.preflight.wanted import ADMIN, CONTROL, EVERYONE, Logins

TOPIC: Final = "grants"
PUBLIC: Final = "PUBLIC"

# None of these is held back by row-level security.
_UNBOUND: Final = frozenset(("TRUNCATE", "REFERENCES", "TRIGGER"))
_WRITES: Final = frozenset(("INSERT", "UPDATE", "DELETE"))
_KEYS: Final = "sluice.api_keys"
_SECRETS: Final = ("secret_sha256", "scram_verifier")
_SIGNING: Final = "sluice.signing_keys"
_SIGNED_UNTIL: Final = (_SIGNING, "signed_until")
# Tables of ours without policies, on which a client's role has nothing to do.
CLOSED: Final = (_SIGNING, "sluice.api_access_logs", "sluice.schema_checksums", "sluice.schema_version")


def check(facts: Facts, logins: Logins) -> Iterator[Finding]:
    """Yield what may be done that shouldn't, and what the control login may not do and has to."""
    yield from on_tables(facts, logins)
    yield from _on_spaces(facts, logins)
    yield from _to_come(facts, logins)
    if facts.installed:
        yield from _control(facts)


def on_tables(facts: Facts, logins: Logins) -> Iterator[Finding]:
    """Yield privileges on tables that are too many."""
    clients = {PUBLIC, *(role for login in logins.pools for role in pool_roles(logins, login)), ADMIN}
    own = (logins.control, CONTROL)
    rows = [row for row in facts.relation_grants if not row["extension"]]
    for (relation, grantee), group in groupby(rows, key=lambda row: (row["relation"], row["grantee"])):
        given = list(group)
        if grantee in clients:
            yield from _of_client(facts, relation, grantee, given)
        elif grantee in own:
            yield from _of_control(relation, grantee, given)


def _of_client(facts: Facts, relation: str, grantee: str, given: list[Row]) -> Iterator[Finding]:
    if relation in CLOSED or relation.startswith("sluice.api_access_logs_"):
        yield _too_many(relation, grantee, given, bypass=relation == _SIGNING)
        return
    if relation == _KEYS:
        yield from _of_keys(facts, grantee, given)
        return
    unbound = [row for row in given if row["privilege"] in _UNBOUND]
    if unbound:
        yield _too_many(relation, grantee, unbound)


def _of_keys(facts: Facts, grantee: str, given: list[Row]) -> Iterator[Finding]:
    writes = [row for row in given if row["privilege"] in _WRITES | _UNBOUND]
    if writes:
        yield _too_many(_KEYS, grantee, writes)
    if any(row["privilege"] == "SELECT" and row["column"] in (None, *_SECRETS) for row in given):
        # A revocation for the table takes the columns' grants with it.
        columns = ", ".join(row["column"] for row in facts.key_columns)
        mend = f"REVOKE SELECT ON {_KEYS} FROM {_role(grantee)};"
        if grantee == EVERYONE:
            mend += f"\nGRANT SELECT ({columns}) ON {_KEYS} TO {EVERYONE};"
        what = f"{grantee} may read what proves the keys ({', '.join(_SECRETS)})"
        yield Finding(ERROR, TOPIC, what, mend)


def _of_control(relation: str, grantee: str, given: list[Row]) -> Iterator[Finding]:
    """Yield what the control login may do beside reading keys and writing the log."""
    if given[0]["schema"] != "sluice":
        yield _too_many(relation, grantee, given, severity=ERROR)
        return
    forbidden = _UNBOUND | (_WRITES if relation == _SIGNING else {"DELETE"})
    # Each proxy notes until when it signs with a key.
    found = [
        row for row in given if row["privilege"] in forbidden and (relation, row["column"]) != _SIGNED_UNTIL
    ]
    if found:
        yield _too_many(relation, grantee, found)


def _too_many(
    relation: str, grantee: str, rows: list[Row], *, severity: str = ERROR, bypass: bool = False
) -> Finding:
    """Return the finding for privileges, and a statement in the name of each grantor: nobody else's revokes it."""
    privileges = sorted({row["privilege"] for row in rows})
    mend = []
    for grantor in sorted({row["grantor"] for row in rows}):
        parts = []
        for privilege in privileges:
            of = [row for row in rows if row["grantor"] == grantor and row["privilege"] == privilege]
            columns = [name(row["column"]) for row in of if row["column"] is not None]
            if any(row["column"] is None for row in of):
                parts.append(privilege)
            elif columns:
                parts.append(f"{privilege} ({', '.join(columns)})")
        statement = f"REVOKE {', '.join(parts)} ON {relation} FROM {_role(grantee)};"
        owned = all(row["owner"] == grantor for row in rows)
        mend.append(statement if owned else f"SET ROLE {name(grantor)};\n{statement}\nRESET ROLE;")
    what = f"{grantee} has {', '.join(privileges)} on {relation}"
    return Finding(severity, TOPIC, what, "\n".join(mend), bypass=bypass)


def _on_spaces(facts: Facts, logins: Logins) -> Iterator[Finding]:
    administrators = {*logins.administrators, ADMIN}
    clients = {PUBLIC, *(role for login in logins.pools for role in pool_roles(logins, login))}
    for row in facts.space_grants:
        kind, place, grantee, privilege = row["kind"], row["name"], row["grantee"], row["privilege"]
        known = grantee in clients or grantee in administrators
        where = f"{kind.lower()} {place}"
        mend = f"REVOKE {privilege} ON {kind} {name(place)} FROM {_role(grantee)};"
        if privilege == "CREATE" and (known or grantee in (logins.control, CONTROL)):
            if grantee in administrators and place != "sluice":
                continue
            yield Finding(ERROR, TOPIC, f"{grantee} may create objects in {where}", mend)
        elif privilege == "TEMPORARY" and grantee in clients:
            what = f"{grantee} may make temporary tables in {where}; without that, sessions can't have any"
            yield Finding(WARNING, TOPIC, what, mend)


def _to_come(facts: Facts, logins: Logins) -> Iterator[Finding]:
    """Yield privileges that new tables will come with."""
    clients = {PUBLIC, *(role for login in logins.pools for role in pool_roles(logins, login))}
    for row in facts.default_grants:
        if row["kind"] == "r" and row["grantee"] in clients and row["privilege"] in _UNBOUND:
            place = f" IN SCHEMA {name(row['schema'])}" if row["schema"] is not None else ""
            mend = (
                f"ALTER DEFAULT PRIVILEGES FOR ROLE {name(row['owner'])}{place}"
                f" REVOKE {row['privilege']} ON TABLES FROM {_role(row['grantee'])};"
            )
            what = f"{row['grantee']} will have {row['privilege']} on each new table of {row['owner']}"
            yield Finding(ERROR, TOPIC, what, mend)


def _control(facts: Facts) -> Iterator[Finding]:
    """Yield what the proxy's own login needs and hasn't got. These rows are of the login that asks."""
    needs = (
        ("schema", "USAGE ON SCHEMA sluice", ERROR),
        ("signing_keys", f"SELECT ON {_SIGNING}", ERROR),
        ("api_keys", f"SELECT ON {_KEYS}", ERROR),
        ("api_access_logs", "INSERT ON sluice.api_access_logs", ERROR),
        ("schema_checksums", "SELECT ON sluice.schema_checksums", WARNING),
    )
    for key, right, severity in needs:
        if not facts.control_may[key]:
            yield Finding(severity, TOPIC, f"{CONTROL} lacks {right}", f"GRANT {right} TO {CONTROL};")


def _role(grantee: str) -> str:
    return grantee if grantee == PUBLIC else name(grantee)
