"""The roles that log in: made, or found and left as they are but for what they lack."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final

import psycopg
from psycopg import sql

from proxy.errors import SluiceError
from proxy.migrate import Say
from proxy.preflight.wanted import ADMIN, CONTROL, READONLY, READWRITE, STATISTICS, Logins

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


class SetupError(SluiceError):
    """What keeps a PostgreSQL from being set up; the message says what to do."""


def make_logins(
    connection: psycopg.Connection[Any],
    passwords: Mapping[str, str],
    superuser: bool,
    warnings: list[str],
    say: Say,
) -> None:
    """Make the logins; set passwords that differ from those `passwords` has, groups, and what they start with."""
    for login in VARIABLES:
        _make(connection, login)
        if login in passwords:
            _set_password(connection, login, passwords[login], superuser, say)
        if login == "app_admin" and not superuser:
            # Its default privileges are changed later, which only its members may do.
            connection.execute("GRANT app_admin TO CURRENT_USER")
        if login in GROUPS:
            _join(connection, GROUPS[login], login)
    if superuser or _may_grant(connection, STATISTICS):
        _join(connection, STATISTICS, CONTROL)
    else:
        warnings.append(f"only a superuser can: GRANT {STATISTICS} TO {CONTROL}")
    _settings(connection, superuser, warnings)


def _make(connection: psycopg.Connection[Any], login: str) -> None:
    attributes = connection.execute(
        "SELECT rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication, rolcanlogin"
        " FROM pg_roles WHERE rolname = %s",
        (login,),
    ).fetchone()
    if attributes is None:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(login)))
    elif attributes[0]:
        raise SetupError(
            f"role {login} has more rights than it may have: ALTER ROLE {login} NOSUPERUSER NOBYPASSRLS"
            " NOCREATEROLE NOCREATEDB NOREPLICATION"
        )
    elif not attributes[1]:
        connection.execute(sql.SQL("ALTER ROLE {} LOGIN").format(sql.Identifier(login)))


def _set_password(
    connection: psycopg.Connection[Any], login: str, password: str, superuser: bool, say: Say
) -> None:
    """Set the password where it isn't the login's already, and say so where there was another."""
    verifier = None
    if superuser:
        query = "SELECT rolpassword FROM pg_authid WHERE rolname = %s"
        row = connection.execute(query, (login,)).fetchone()
        verifier = row[0] if row is not None else None
    if verifier is not None and _proves(verifier, password):
        return
    # The verifier is computed here, so that no log of the server can hold the password.
    encrypted = connection.pgconn.encrypt_password(password.encode(), login.encode(), b"scram-sha-256")
    statement = sql.SQL("ALTER ROLE {} PASSWORD {}")
    connection.execute(statement.format(sql.Identifier(login), sql.Literal(encrypted.decode())))
    if verifier is not None:
        say(f"the password of {login} is now another")


def _proves(verifier: str, password: str) -> bool:
    """Tell whether `verifier`, as pg_authid has it, is of `password` (RFC 5803); False where it can't be told."""
    kind, _, rest = verifier.partition("$")
    if kind != "SCRAM-SHA-256" or not password.isascii():
        return False
    parameters, _, keys = rest.partition("$")
    iterations, _, salt = parameters.partition(":")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(iterations))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return hashlib.sha256(client_key).digest() == base64.b64decode(keys.partition(":")[0])


def _join(connection: psycopg.Connection[Any], group: str, member: str) -> None:
    """Make `member` a member of `group` where it isn't."""
    query = (
        "SELECT 1 FROM pg_auth_members m JOIN pg_roles u ON u.oid = m.member JOIN pg_roles g ON g.oid = m.roleid"
        " WHERE g.rolname = %s AND u.rolname = %s"
    )
    if connection.execute(query, (group, member)).fetchone() is None:
        names = map(sql.Identifier, (group, member))
        connection.execute(sql.SQL("GRANT {} TO {}").format(*names))


def _may_grant(connection: psycopg.Connection[Any], role: str) -> bool:
    row = connection.execute("SELECT pg_has_role(%s, 'MEMBER WITH ADMIN OPTION')", (role,)).fetchone()
    return row is not None and bool(row[0])


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
