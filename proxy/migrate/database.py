"""The connection that migrations run on, the lock that it holds, and what its role may not do."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from proxy.migrate.errors import MigrationError
from proxy.migrate.progress import Progress

LOCK: Final = 0x706773_6C756963  # "pgsluic": any number that others don't use
# A filtered statement must fail, not touch nothing; and names may mean nothing but PostgreSQL's own. Set anew
# for each migration, because the one before may have changed it.
SETTINGS: Final = "SET search_path = pg_catalog, pg_temp; SET row_security = off"
# What a role's or database's own timeouts would cut short: a migration, and the wait while pg_dump runs.
_OPTIONS: Final = (
    "-c row_security=off -c search_path=pg_catalog,pg_temp -c client_min_messages=notice"
    " -c statement_timeout=0 -c idle_session_timeout=0"
)
_HOLDER: Final = f"""
SELECT l.pid, a.usename, a.application_name, a.client_addr, a.backend_start
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.classid::bigint = {LOCK >> 32} AND l.objid::bigint = {LOCK & 0xFFFFFFFF}
"""
# Makes the roles; whoever migrates after it acts as the first three of them.
_ROLES_MADE: Final = "core_0001"
_OWNERS: Final = ("sluice_owner", "sluice_definer", "sluice_control")
_ROLES: Final = (*_OWNERS, "authenticated_users", "sluice_readwrite", "sluice_readonly", "sluice_admin")
# Makes functions in public, whose owner it has to be or to become.
_IN_PUBLIC: Final = "core_0003"


@contextmanager
def connected(dsn: str, progress: Progress) -> Iterator[Connection]:
    """Open a connection for the time of a `with` block; what the server refuses is a MigrationError."""

    def connect() -> psycopg.Connection:
        given = str(conninfo_to_dict(dsn).get("options") or os.environ.get("PGOPTIONS", ""))
        connection = psycopg.connect(
            dsn,
            application_name="pgsluice migrate",
            options=f"{given} {_OPTIONS}".strip(),
            client_encoding="utf8",
        )
        connection.add_notice_handler(
            lambda notice: progress.say(f"{notice.severity}: {notice.message_primary}")
        )
        return connection

    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as problem:
        raise MigrationError(str(problem.orig).strip()) from problem
    finally:
        engine.dispose()


@contextmanager
def locked(dsn: str, progress: Progress) -> Iterator[Connection]:
    """Open a connection that holds the lock of migrations until it closes, or dies."""
    with connected(dsn, progress) as connection:
        _end_with_client(connection)
        if not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({LOCK})").scalar():
            holder = connection.exec_driver_sql(_HOLDER).first()
            progress.say(f"waiting for another migration to end{'' if holder is None else _told(holder)}")
            # Not within a transaction: an old snapshot would hold up vacuum while it waits.
            connection.commit()
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({LOCK})")
        connection.commit()
        yield connection


def server(connection: Connection) -> psycopg.Connection[Any]:
    """Return psycopg's own connection."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    return raw


def check_rights(connection: Connection, pending: Collection[str]) -> None:
    """Raise MigrationError with all that the role lacks for migrations of which `pending` are still to come."""
    role, database, superuser, creates_roles, creates_schemas, creates_in_public = connection.exec_driver_sql(
        "SELECT quote_ident(current_user), quote_ident(current_database()), rolsuper, rolcreaterole,"
        " has_database_privilege(current_database(), 'CREATE'),"
        " has_schema_privilege(to_regnamespace('public')::oid, 'CREATE')"
        " FROM pg_roles WHERE rolname = current_user"
    ).one()
    if superuser:
        return
    first = _ROLES_MADE in pending
    lacking: list[str] = []
    if first and not creates_schemas:
        lacking.append(f"GRANT CREATE ON DATABASE {database} TO {role}")
    if first and not creates_roles:
        lacking.append(f"ALTER ROLE {role} CREATEROLE")
    if _IN_PUBLIC in pending and creates_in_public is False:
        lacking.append(f"GRANT CREATE ON SCHEMA public TO {role}")
    # Before version 16, CREATEROLE is enough to grant any role; since, one has to hold it with ADMIN.
    if first and server(connection).info.server_version >= 160000:
        if missing := _not_held(connection, _ROLES, "MEMBER WITH ADMIN OPTION"):
            lacking.append(f"GRANT {missing} TO {role} WITH ADMIN OPTION")
    if not first and (missing := _not_held(connection, _OWNERS, "MEMBER")):
        lacking.append(f"GRANT {missing} TO {role}")
    if lacking:
        raise MigrationError(
            f"{role} may not migrate database {database}; a superuser can change that:\n"
            + "\n".join(f"{each};" for each in lacking)
        )


def _not_held(connection: Connection, roles: Sequence[str], how: str) -> str:
    asked = (
        f"SELECT rolname FROM pg_roles WHERE rolname IN {tuple(roles)} AND NOT pg_has_role(oid, '{how}')"
        " ORDER BY rolname"
    )
    return ", ".join(row.rolname for row in connection.exec_driver_sql(asked))


def _end_with_client(connection: Connection) -> None:
    """Have the server end a statement whose client is gone, and let its lock go with it."""
    # Systems that can't look at a socket while they work refuse the setting.
    with suppress(DBAPIError):
        connection.exec_driver_sql("SET client_connection_check_interval = '1s'")
    # Commits what was set, or ends the transaction that failed.
    connection.commit()


def _told(holder: Any) -> str:
    # Of other roles' sessions a role without pg_read_all_stats sees the process and the user alone.
    program = f" ({holder.application_name})" if holder.application_name else ""
    address = f" from {holder.client_addr}" if holder.client_addr else ""
    since = f" since {holder.backend_start:%H:%M:%S%z}" if holder.backend_start else ""
    return f": that of process {holder.pid}{program}, user {holder.usename}{address}{since}"
