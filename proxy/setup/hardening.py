"""What `setup --harden` takes from PUBLIC beyond what isolation needs: ways to disturb others, or to hide.

Each privilege is read back, because a REVOKE by somebody who didn't grant it only warns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from proxy.preflight.finding import name
from proxy.preflight.wanted import ADMIN, DEFINER, OWNER

_OPTIONS: Final = "-c search_path=pg_catalog,pg_temp"
# Families of built-in functions, as patterns of LIKE, and who keeps them.
_FUNCTIONS: Final = (
    ("pg_cancel_backend", ("pg\\_cancel\\_backend",), "pg_signal_backend"),
    ("pg_terminate_backend", ("pg\\_terminate\\_backend",), "pg_signal_backend"),
    ("large objects (lo_*)", ("lo\\_%", "loread", "lowrite"), ""),
    ("query_to_xml*", ("query\\_to\\_xml%",), ""),
    ("ts_stat", ("ts\\_stat",), ""),
    ("ts_rewrite", ("ts\\_rewrite",), ""),
)
# Those among them that PUBLIC may call.
_PUBLIC_FUNCTIONS: Final = """
SELECT p.oid::regprocedure::text FROM pg_proc p
WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname LIKE ANY (%s)
  AND EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) g WHERE g.grantee = 0)
ORDER BY 1
"""
_PUBLIC_LANGUAGE: Final = """
SELECT 'plpgsql' FROM pg_language l
WHERE l.lanname = 'plpgsql'
  AND EXISTS (SELECT FROM aclexplode(coalesce(l.lanacl, acldefault('l', l.lanowner))) g WHERE g.grantee = 0)
"""
_PUBLIC_DATABASE: Final = """
SELECT d.datname FROM pg_database d
WHERE d.datname = current_database()
  AND EXISTS (SELECT FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) g
              WHERE g.grantee = 0 AND g.privilege_type = %s)
"""
_PUBLIC_SCHEMA: Final = """
SELECT n.nspname FROM pg_namespace n
WHERE n.nspname = 'public'
  AND EXISTS (SELECT FROM aclexplode(n.nspacl) g WHERE g.grantee = 0 AND g.privilege_type = 'CREATE')
"""


@dataclass(frozen=True)
class Hardening:
    """One thing that PUBLIC could do: `state` is done, already so, or not possible here."""

    what: str
    state: str


DONE: Final = "done"
ALREADY: Final = "already so"
IMPOSSIBLE: Final = "not possible here"


@dataclass(frozen=True)
class _Step:
    what: str
    # Asks for the names of what PUBLIC may use; nothing is left to do where there are none.
    query: str
    argument: object
    revoke: str
    grant: str = ""


def harden(admin_dsn: str, database: str) -> list[Hardening]:
    """Take from PUBLIC, in `database`, what clients don't need; return what came of it. May run again."""
    dsn = make_conninfo(admin_dsn, dbname=database)
    with psycopg.connect(
        dsn, autocommit=True, options=_OPTIONS, application_name="pgsluice setup"
    ) as connection:
        return [_take(connection, step) for step in _steps(database)]


def _steps(database: str) -> Iterator[_Step]:
    for what, patterns, keeper in _FUNCTIONS:
        grant = f"GRANT EXECUTE ON FUNCTION {{}} TO {keeper}" if keeper else ""
        revoke = "REVOKE EXECUTE ON FUNCTION {} FROM PUBLIC"
        yield _Step(what, _PUBLIC_FUNCTIONS, list(patterns), revoke, grant)
    # Functions and triggers that are there go on working; DO and CREATE FUNCTION stop.
    yield _Step(
        "USAGE on plpgsql",
        _PUBLIC_LANGUAGE,
        None,
        "REVOKE USAGE ON LANGUAGE {} FROM PUBLIC",
        f"GRANT USAGE ON LANGUAGE {{}} TO {OWNER}, {DEFINER}, {ADMIN}",
    )
    for privilege in ("TEMPORARY", "CREATE"):
        revoke = f"REVOKE {privilege} ON DATABASE {{}} FROM PUBLIC"
        yield _Step(f"{privilege} on database {database}", _PUBLIC_DATABASE, privilege, revoke)
    yield _Step("CREATE on schema public", _PUBLIC_SCHEMA, None, "REVOKE CREATE ON SCHEMA {} FROM PUBLIC")


def _take(connection: psycopg.Connection[Any], step: _Step) -> Hardening:
    objects = _open(connection, step)
    if not objects:
        return Hardening(step.what, ALREADY)
    try:
        with connection.transaction():
            # Who keeps it is granted it first: in between nobody would have it.
            for template in (step.grant, step.revoke):
                if template:
                    connection.execute(template.format(", ".join(objects)).encode())
    except psycopg.errors.InsufficientPrivilege:
        return Hardening(step.what, IMPOSSIBLE)
    return Hardening(step.what, IMPOSSIBLE if _open(connection, step) else DONE)


def _open(connection: psycopg.Connection[Any], step: _Step) -> Sequence[str]:
    arguments = None if step.argument is None else [step.argument]
    found = [str(row[0]) for row in connection.execute(step.query.encode(), arguments)]
    return found if step.query is _PUBLIC_FUNCTIONS else [name(each) for each in found]
