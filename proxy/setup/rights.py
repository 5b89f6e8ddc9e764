"""Grants and revocations of every installation; each is made only where the catalogue says that it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import psycopg
from psycopg import RawCursor
from psycopg.rows import dict_row

from proxy.preflight import functions, queries
from proxy.preflight.facts import Facts
from proxy.preflight.finding import Row, name
from proxy.preflight.wanted import ADMIN, CONTROL, EVERYONE, READONLY, READWRITE

_ADMIN_LOGIN: Final = "app_admin"
_ROLES: Final = [CONTROL, EVERYONE, READWRITE, READONLY, ADMIN, _ADMIN_LOGIN]
_CHECKSUMS: Final = "sluice.schema_checksums"
# What an administrator creates is everybody's to use.
_NEW: Final = (
    ("r", "TABLES", READWRITE, ("SELECT", "INSERT", "UPDATE", "DELETE")),
    ("r", "TABLES", READONLY, ("SELECT",)),
    ("S", "SEQUENCES", READWRITE, ("SELECT", "USAGE")),
    ("S", "SEQUENCES", READONLY, ("SELECT",)),
)


def give_rights(
    connection: psycopg.Connection[Any], database: str, superuser: bool, warnings: list[str]
) -> None:
    """Grant and revoke what is needed and isn't so yet."""
    for statement in (*_on_spaces(connection, database), *_on_what_comes(connection)):
        connection.execute(statement.encode())
    if not any(
        (row["relation"], row["grantee"], row["privilege"]) == (_CHECKSUMS, CONTROL, "SELECT")
        for row in _rows(connection, queries.RELATION_GRANTS, _ROLES)
    ):
        connection.execute(f"GRANT SELECT ON {_CHECKSUMS} TO {CONTROL}".encode())
    _statistics(connection, superuser, warnings)


def _on_spaces(connection: psycopg.Connection[Any], database: str) -> Iterator[str]:
    present = {
        (row["kind"], row["name"], row["grantee"], row["privilege"])
        for row in _rows(connection, queries.SPACE_GRANTS, _ROLES)
    }
    if ("SCHEMA", "public", "PUBLIC", "CREATE") in present:
        yield "REVOKE CREATE ON SCHEMA public FROM PUBLIC"
    for kind, place, grantee, privilege in (
        ("SCHEMA", "public", EVERYONE, "USAGE"),
        ("SCHEMA", "public", ADMIN, "CREATE"),
        ("DATABASE", database, CONTROL, "CONNECT"),
        ("DATABASE", database, CONTROL, "TEMPORARY"),
        ("DATABASE", database, EVERYONE, "CONNECT"),
    ):
        if (kind, place, grantee, privilege) not in present:
            yield f"GRANT {privilege} ON {kind} {name(place)} TO {grantee}"


def _on_what_comes(connection: psycopg.Connection[Any]) -> Iterator[str]:
    present = {
        (row["kind"], row["grantee"], row["privilege"])
        for row in _rows(connection, queries.DEFAULT_GRANTS, _ROLES)
        if row["owner"] == _ADMIN_LOGIN and row["schema"] is None
    }
    for kind, objects, grantee, privileges in _NEW:
        if any((kind, grantee, privilege) not in present for privilege in privileges):
            yield (
                f"ALTER DEFAULT PRIVILEGES FOR ROLE {_ADMIN_LOGIN}"
                f" GRANT {', '.join(privileges)} ON {objects} TO {grantee}"
            )


def _statistics(connection: psycopg.Connection[Any], superuser: bool, warnings: list[str]) -> None:
    """Take from PUBLIC what shows other sessions' statements, as pg_stat_activity would without track_activities."""
    for finding in functions.statistics(Facts(statistics=_rows(connection, queries.STATISTICS))):
        if superuser:
            connection.execute(finding.mend.encode())
        else:
            warnings.append(f"only a superuser can: {' '.join(finding.mend.split())}")


def _rows(connection: psycopg.Connection[Any], query: str, *arguments: object) -> list[Row]:
    with RawCursor(connection, row_factory=dict_row) as cursor:
        return list(cursor.execute(query.encode(), arguments).fetchall())
