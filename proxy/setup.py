"""Bring a PostgreSQL to a working installation: database, logins, the bundled SQL, first keys, configuration.

Every step looks first at what is there, so it may run again: over an installation it changes nothing but
what had been taken away. Passwords and keys are returned, or written to a file that only its owner reads;
they are never logged, and PostgreSQL gets passwords as SCRAM verifiers.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from proxy import migrate
from proxy.errors import SluiceError
from proxy.preflight.wanted import ADMIN, CONTROL, READONLY, READWRITE, Logins

# Each pool's login, with the group that gives it its rights.
GROUPS: Final[Mapping[str, str]] = {"app_rw": READWRITE, "app_ro": READONLY, "app_admin": ADMIN}
# The environment variable that stands for each login's password in a configuration.
VARIABLES: Final[Mapping[str, str]] = {
    CONTROL: "PGSLUICE_CONTROL_PASSWORD",
    "app_rw": "APP_RW_PASSWORD",
    "app_ro": "APP_RO_PASSWORD",
    "app_admin": "APP_ADMIN_PASSWORD",
}
# Of what logins start with, the settings that a superuser alone may make.
_SUPERUSER_SETTINGS: Final = frozenset(("track_activities",))
_OLDEST: Final = 150000
# Nobody who may create objects in public may choose which function a superuser calls here (CVE-2018-1058).
_OPTIONS: Final = "-c search_path=pg_catalog,pg_temp"

_GRANTS: Final = """
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO authenticated_users;
GRANT CREATE ON SCHEMA public TO sluice_admin;
GRANT CONNECT, TEMPORARY ON DATABASE {database} TO sluice_control;
GRANT CONNECT ON DATABASE {database} TO authenticated_users;
GRANT SELECT ON sluice.schema_checksums TO sluice_control;
ALTER DEFAULT PRIVILEGES FOR ROLE app_admin
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO sluice_readwrite;
ALTER DEFAULT PRIVILEGES FOR ROLE app_admin GRANT SELECT ON TABLES TO sluice_readonly;
ALTER DEFAULT PRIVILEGES FOR ROLE app_admin GRANT SELECT, USAGE ON SEQUENCES TO sluice_readwrite;
ALTER DEFAULT PRIVILEGES FOR ROLE app_admin GRANT SELECT ON SEQUENCES TO sluice_readonly;
"""
# It shows other sessions' statements, as pg_stat_activity would without track_activities = off.
_SUPERUSER_GRANTS: Final = """
REVOKE EXECUTE ON FUNCTION pg_catalog.pg_stat_get_backend_activity(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pg_catalog.pg_stat_get_backend_activity(integer) TO sluice_control, pg_monitor;
"""


class SetupError(SluiceError):
    """What keeps a PostgreSQL from being set up; the message says what to do."""


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

    A login that exists keeps its password unless `passwords` has one. Raises SetupError, with `new_logins`
    False also for a login that would have to be made; MigrationError.
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
        present = {row[0] for row in server.execute("SELECT rolname FROM pg_roles WHERE rolcanlogin")}
    missing = [login for login in VARIABLES if login not in present]
    if missing and not new_logins:
        raise SetupError(f"the logins {', '.join(missing)} don't exist, and their passwords would be lost")
    known.update((login, secrets.token_urlsafe(24)) for login in missing if login not in known)
    dsn = make_conninfo(admin_dsn, dbname=database)
    applied = migrate.up(dsn, schemas, say=say)
    with psycopg.connect(dsn, options=_OPTIONS, application_name="pgsluice setup") as connection:
        _logins(connection, known, warnings)
        _rights(connection, database, warnings)
        admin_key = _first_keys(connection)
    for warning in warnings:
        say(f"warning: {warning}")
    return SetupResult(database, host, port, known, admin_key, applied, warnings)


def configuration(result: SetupResult, *, inline: bool = True) -> str:
    """Return a pgsluice.yaml for what was set up; with `inline` it holds the passwords that are known."""

    def password(login: str) -> str:
        if inline and login in result.passwords:
            return json.dumps(result.passwords[login].replace("${", "$${"))
        return f'"${{{VARIABLES[login]}}}"'

    def pool(name: str, login: str, least: int, most: int) -> str:
        limits = f"min: {least}, max: {most}"
        return f"      {name + ':':12}{{user: {login}, password: {password(login)}, {limits}}}\n"

    # A server that was reached over its Unix socket is reached by the proxy over TCP.
    host = "127.0.0.1" if not result.host or result.host.startswith("/") else result.host
    return (
        "databases:\n"
        f"  {json.dumps(result.database)}:\n"
        f"    database: {json.dumps(result.database)}\n"
        f"    control: {{user: {CONTROL}, password: {password(CONTROL)}}}\n"
        "    hosts:\n"
        f"      - {{name: main, host: {json.dumps(host)}, port: {result.port}, role: auto}}\n"
        "    pools:\n"
        + pool("primary", "app_rw", 2, 10)
        + pool("readonly", "app_ro", 1, 5)
        + pool("priority", "app_rw", 1, 3)
        + pool("background", "app_rw", 1, 2)
        + pool("admin", "app_admin", 0, 2)
    )


def write_private(path: Path, text: str) -> None:
    """Write a new file that its owner alone may read (mode 600); raises FileExistsError."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def run(
    dsn: str,
    database: str,
    *,
    schemas: Sequence[str] = ("core",),
    config: Path | None = Path("pgsluice.yaml"),
    inline: bool = True,
    environ: Mapping[str, str] | None = None,
    as_json: bool = False,
) -> int:
    """Do what `pgsluice setup` asks for, print it, and return the exit code.

    Passwords come from the variables of `environ` where they are set, and go into the file `config`, which is
    made; a file that is there is left alone, and then no login may be missing. Raises SetupError.
    """
    variables = os.environ if environ is None else environ
    given = {login: variables[name] for login, name in VARIABLES.items() if variables.get(name)}
    fresh = config is not None and not config.exists()
    # With variables alone nothing would be left of a password that was made here.
    new_logins = (fresh and inline) or given.keys() == VARIABLES.keys()
    result = setup(
        dsn, database, schemas, given, new_logins=new_logins, say=(lambda _: None) if as_json else print
    )
    if config is not None and fresh:
        write_private(config, configuration(result, inline=inline))
    if as_json:
        facts = {
            "database": result.database,
            "admin_key": result.admin_key,
            "migrations": list(result.migrations),
            "warnings": list(result.warnings),
            "config": str(config) if fresh else None,
        }
        print(json.dumps(facts))
        return 0
    if fresh:
        print(f"configuration written to {config}")
        unknown = [name for login, name in VARIABLES.items() if not inline or login not in result.passwords]
        if unknown:
            print(f"it reads these environment variables: {', '.join(unknown)}")
    if result.admin_key is not None:
        print(f"first admin key, shown this once: {result.admin_key}")
    print(f"database {database} is ready")
    if config is not None:
        # The file that both read by themselves, unless variables stand in its place.
        known = config == Path("pgsluice.yaml") and not variables.get("DB_NAME")
        option = "" if known else f" -c {shlex.quote(str(config))}"
        print(f"next: pgsluice check{option}\n      pgsluice serve{option}")
    return 0


def _logins(connection: psycopg.Connection[Any], passwords: Mapping[str, str], warnings: list[str]) -> None:
    """Make the logins, set given passwords and the settings that they start with."""
    superuser = bool(_value(connection, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"))
    for login in VARIABLES:
        name = sql.Identifier(login)
        attributes = connection.execute(
            "SELECT rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication, rolcanlogin"
            " FROM pg_roles WHERE rolname = %s",
            (login,),
        ).fetchone()
        if attributes is None:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
        elif attributes[0]:
            raise SetupError(
                f"role {login} has more rights than it may have: ALTER ROLE {login} NOSUPERUSER NOBYPASSRLS"
                " NOCREATEROLE NOCREATEDB NOREPLICATION"
            )
        elif not attributes[1]:
            connection.execute(sql.SQL("ALTER ROLE {} LOGIN").format(name))
        if login in passwords:
            # The verifier is computed here, so that no log of the server can hold the password.
            encrypted = connection.pgconn.encrypt_password(
                passwords[login].encode(), login.encode(), b"scram-sha-256"
            ).decode()
            connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(encrypted)))
        if login == "app_admin" and not superuser:
            # Its default privileges are changed below, which only its members may do.
            connection.execute("GRANT app_admin TO CURRENT_USER")
        if login in GROUPS:
            connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(GROUPS[login]), name))
    _settings(connection, superuser, warnings)


def _settings(connection: psycopg.Connection[Any], superuser: bool, warnings: list[str]) -> None:
    """Set what logins start with, where it isn't set."""
    present = {
        (row[0], row[1])
        for row in connection.execute(
            "SELECT r.rolname, s.setting FROM pg_db_role_setting t JOIN pg_roles r ON r.oid = t.setrole"
            " CROSS JOIN LATERAL unnest(t.setconfig) AS s (setting) WHERE t.setdatabase = 0"
        )
    }
    for login, settings in Logins(GROUPS, CONTROL).settings().items():
        for setting, value in settings.items():
            if (login, f"{setting}={value}") in present:
                continue
            if setting in _SUPERUSER_SETTINGS and not superuser:
                warnings.append(f"only a superuser can: ALTER ROLE {login} SET {setting} = {value}")
            else:
                statement = sql.SQL("ALTER ROLE {} SET {} = {}")
                names = map(sql.Identifier, (login, setting))
                connection.execute(statement.format(*names, sql.SQL(value)))


def _rights(connection: psycopg.Connection[Any], database: str, warnings: list[str]) -> None:
    connection.execute(sql.SQL(_GRANTS).format(database=sql.Identifier(database)))
    if _value(connection, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        connection.execute(_SUPERUSER_GRANTS)
    else:
        warnings.append("only a superuser can take pg_stat_get_backend_activity from PUBLIC")


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
