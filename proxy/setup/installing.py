"""The steps of setup, in order: database, bundled SQL, logins, rights, first keys."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from proxy import migrate
from proxy.setup.logins import VARIABLES, SetupError, make_logins
from proxy.setup.rights import give_rights

_OLDEST: Final = 150000
# Nobody who may create objects in public may choose which function a superuser calls here (CVE-2018-1058).
_OPTIONS: Final = "-c search_path=pg_catalog,pg_temp"


@dataclass(frozen=True)
class SetupResult:
    """What setup made. `passwords` has the logins whose password is known: new ones, and given ones.

    `admin_key` is None where a valid key with the permission admin was there already.
    """

    database: str
    host: str
    port: int
    passwords: Mapping[str, str] = field(repr=False)
    admin_key: str | None = field(repr=False)
    migrations: Sequence[str]
    warnings: Sequence[str]
    # Where the server sees us, None over its Unix socket, and whether it has TLS.
    client: str | None = None
    tls: bool = False


def setup(
    admin_dsn: str,
    database: str,
    schemas: Sequence[str] = ("core",),
    passwords: Mapping[str, str] | None = None,
    *,
    new_logins: bool = True,
    say: migrate.Say = lambda _: None,
) -> SetupResult:
    """Set up `database` on the server that a superuser reaches by `admin_dsn`, and return what was made.

    The schema core is always among `schemas`. A login that exists keeps its password unless `passwords` has another.
    Raises SetupError, with `new_logins` False also for a login that would have to be made; MigrationError.
    """
    warnings: list[str] = []
    known = dict(passwords or {})
    if unknown := known.keys() - VARIABLES.keys():
        raise SetupError(f"there are no logins called {', '.join(sorted(unknown))}")
    with _maintenance(admin_dsn) as server:
        if server.info.server_version < _OLDEST:
            raise SetupError("PostgreSQL 15 or newer is needed")
        host, port = server.info.host, server.info.port
        if _value(server, "SELECT 1 FROM pg_database WHERE datname = %s", database) is None:
            server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
            say(f"database {database} created")
        client, tls = server.execute(
            "SELECT host(inet_client_addr()), current_setting('ssl')::bool"
        ).fetchone() or (None, False)
        superuser = bool(_value(server, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"))
        # One that was shut out for a while has its password still.
        logins = (
            "pg_authid WHERE rolcanlogin OR rolpassword IS NOT NULL"
            if superuser
            else "pg_roles WHERE rolcanlogin"
        )
        present = {row[0] for row in server.execute(f"SELECT rolname FROM {logins}".encode())}
    missing = [login for login in VARIABLES if login not in present]
    if missing and not new_logins:
        raise SetupError(f"the logins {', '.join(missing)} don't exist, and their passwords would be lost")
    known.update((login, secrets.token_urlsafe(24)) for login in missing if login not in known)
    dsn = make_conninfo(admin_dsn, dbname=database)
    applied = migrate.up(dsn, list(dict.fromkeys(("core", *schemas))), say=say)
    with psycopg.connect(dsn, options=_OPTIONS, application_name="pgsluice setup") as connection:
        make_logins(connection, known, superuser, warnings, say)
        give_rights(connection, database, superuser, warnings)
        admin_key = _first_keys(connection)
    for warning in warnings:
        say(f"warning: {warning}")
    return SetupResult(
        database,
        host,
        port,
        known,
        admin_key,
        applied,
        warnings,
        None if client is None else str(client),
        tls,
    )


def _first_keys(connection: psycopg.Connection[Any]) -> str | None:
    """Make a signing key and an API key with admin where there is none; return the latter."""
    if _value(connection, "SELECT 1 FROM sluice.signing_keys LIMIT 1") is None:
        connection.execute("SELECT sluice.create_signing_key()")
    admin = _value(
        connection,
        "SELECT 1 FROM sluice.api_keys WHERE permissions ? 'admin' AND revoked_at IS NULL"
        " AND (expires_at IS NULL OR expires_at > now()) LIMIT 1",
    )
    if admin is not None:
        return None
    made = _value(
        connection,
        """SELECT sluice.generate_api_key('first admin key', 'admin', '["admin"]') ->> 'api_key'""",
    )
    return str(made)


def _value(connection: psycopg.Connection[Any], query: str, *parameters: object) -> object:
    row = connection.execute(query, parameters or None).fetchone()
    return None if row is None else row[0]


@contextmanager
def _maintenance(admin_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """Connect where `admin_dsn` says, or to the database postgres where that one doesn't exist yet."""
    try:
        try:
            connection = psycopg.connect(admin_dsn, autocommit=True, options=_OPTIONS)
        except psycopg.OperationalError as problem:
            # libpq keeps no SQLSTATE of a failed connection.
            if "does not exist" not in str(problem):
                raise
            other = make_conninfo(admin_dsn, dbname="postgres")
            connection = psycopg.connect(other, autocommit=True, options=_OPTIONS)
    except psycopg.OperationalError as problem:
        raise SetupError(str(problem).strip()) from problem
    with connection:
        yield connection
