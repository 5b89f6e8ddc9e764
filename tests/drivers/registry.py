"""The drivers, how each one's program is started, and which checks a driver has no means for."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent


@dataclass(frozen=True, eq=False)
class Driver:
    """A driver: what it is called, its program's command line, and what it lacks.

    `needs` are Debian's packages that bring it. `lacks` gives the reason for each check that its program leaves out;
    a check that is left out without a reason fails, and so does a reason for a check that is done.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    lacks: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


def _python(module: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"tests.drivers.python.{module}")


# Debian's Go packages are sources in a GOPATH, without modules. lib/pq insists on TLS unless told otherwise.
_GO: Final = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": "", "PGSSLMODE": "disable"}

_ORM: Final = {
    "copy_in": "COPY is left to the driver below",
    "copy_out": "COPY is left to the driver below",
    "cancel": "cancelling is left to the driver below",
    "listen": "notifications are left to the driver below",
}

DRIVERS: Final = (
    Driver("psql", ("bash", str(HERE / "shell/psql.sh"))),
    Driver("psycopg 3", _python("psycopg3")),
    Driver("psycopg 3, async", _python("psycopg3_async")),
    Driver("psycopg2", _python("psycopg2_sync")),
    Driver("asyncpg", _python("asyncpg_async")),
    Driver("pg8000", _python("pg8000_native"), lacks={"cancel": "it has no function to cancel a statement"}),
    Driver("SQLAlchemy, psycopg", (*_python("sqlalchemy_orm"), "psycopg"), lacks=_ORM),
    Driver("SQLAlchemy, asyncpg", (*_python("sqlalchemy_orm"), "asyncpg"), lacks=_ORM),
    Driver("Django", _python("django_orm"), lacks=_ORM),
    Driver("node-postgres", ("node", str(HERE / "node/pg.js")), ("nodejs", "npm")),
    Driver("postgres.js", ("node", str(HERE / "node/postgres.js")), ("nodejs", "npm")),
    Driver(
        "JDBC (pgjdbc)",
        ("java", "-cp", "/usr/share/java/postgresql.jar", str(HERE / "java/Jdbc.java")),
        ("default-jdk-headless", "libpostgresql-jdbc-java"),
    ),
    Driver(
        "lib/pq",
        ("go", "run", "./tests/drivers/go/pq"),
        ("golang-go", "golang-github-lib-pq-dev"),
        {"copy_out": "it refuses COPY TO"},
        _GO,
    ),
    Driver(
        "pgx",
        ("go", "run", "./tests/drivers/go/pgx"),
        ("golang-go", "golang-github-jackc-pgx-v4-dev"),
        environment=_GO,
    ),
    Driver(
        "psqlodbc (pyodbc)",
        _python("odbc"),
        ("odbc-postgresql",),
        {
            "copy_in": "ODBC knows no COPY",
            "copy_out": "ODBC knows no COPY",
            "listen": "ODBC knows no notifications",
        },
    ),
    Driver("Ruby pg", ("ruby", str(HERE / "ruby/pg.rb")), ("ruby", "ruby-pg")),
    Driver("DBD::Pg", ("perl", str(HERE / "perl/dbd_pg.pl")), ("perl", "libdbd-pg-perl")),
    Driver(
        "PDO pgsql",
        ("php", str(HERE / "php/pdo.php")),
        ("php-cli", "php-pgsql"),
        {"cancel": "PDO runs a statement in a blocking call and has no function to cancel it"},
    ),
)


def missing(driver: Driver) -> str | None:
    """Return what is missing to run this driver's program, None if its command is there."""
    if shutil.which(driver.command[0]) is None:
        return (
            f"{driver.command[0]} is not installed: {' '.join(driver.needs) or 'see tests/drivers/install'}"
        )
    return None
