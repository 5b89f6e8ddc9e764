"""psqlodbc behind pyodbc: the way of BI tools. It makes a savepoint for each statement of a transaction."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyodbc

from tests.drivers.python.report import (
    AUTHORITY,
    BIG,
    DATABASE,
    HOST,
    NUMERIC,
    PASSWORD,
    PORT,
    TABLE,
    UNICODE,
    USER,
    equal,
    run,
    until,
)

LOGIN = f"Driver={{PostgreSQL Unicode}};Servername={HOST};Port={PORT};Database={DATABASE};UID={USER};PWD={PASSWORD}"
if AUTHORITY:
    LOGIN += f";SSLmode=verify-full;pqopt={{sslrootcert={AUTHORITY}}}"

# The unixODBC manager would keep connections for itself.
pyodbc.pooling = False


@contextmanager
def session(autocommit: bool = True, options: str = "") -> Iterator[Any]:
    with closing(pyodbc.connect(f"{LOGIN};{options}", autocommit=autocommit)) as connection:
        yield connection


def value(connection: Any, statement: str, *parameters: object) -> Any:
    return connection.execute(statement, *parameters).fetchval()


def fails(sqlstate: str, work: Callable[[], object]) -> None:
    try:
        work()
    except pyodbc.Error as error:
        equal(error.args[0], sqlstate)
    else:
        raise AssertionError(f"it didn't fail with {sqlstate}")


def noted(number: int) -> int:
    with session() as other:
        return len(other.execute(f"SELECT id FROM {TABLE} WHERE id = ? FOR SHARE", number).fetchall())


def connect() -> None:
    with session() as connection:
        equal(value(connection, "SELECT 1"), 1)
        assert connection.getinfo(pyodbc.SQL_DBMS_VER) >= "15"


def types() -> None:
    values = {
        "integer": 2**31 - 1,
        "bigint": -(2**53) - 1,
        "numeric(30, 10)": Decimal(NUMERIC),
        "text": UNICODE,
        "bytea": b"\x00\xff'\\",
        "timestamp": datetime(2026, 1, 2, 3, 4, 5, 678901),
        "date": None,
    }
    texts = {
        "timestamptz": "2026-01-02 03:04:05.678901+00",
        "jsonb": '{"a": [1, null]}',
        "integer[]": "{1,2,NULL}",
        "text[]": '{a,NULL,"with \\"quotes\\", {braces}"}',
    }
    with session() as connection:
        connection.execute("SET timezone = 'UTC'")
        for kind, one in values.items():
            equal(value(connection, f"SELECT ?::{kind}", one), one)
        for kind, one in texts.items():
            equal(value(connection, f"SELECT ?::{kind}::text", one), one)


def prepared() -> None:
    with session() as connection, connection.cursor() as plus, connection.cursor() as joined:
        for number in range(20):
            connection.autocommit = number % 3 != 0
            equal(plus.execute("SELECT ?::integer + 1", number).fetchval(), number + 1)
            equal(joined.execute("SELECT ?::text || 'x'", str(number)).fetchval(), f"{number}x")
            connection.commit()


def commit() -> None:
    with session(autocommit=False) as connection:
        connection.execute(f"INSERT INTO {TABLE} VALUES (100, 'kept')")
        connection.commit()
        equal(noted(100), 1)


def rollback() -> None:
    with session(autocommit=False) as connection:
        connection.execute(f"INSERT INTO {TABLE} VALUES (200, 'gone')")
        connection.rollback()
        equal(noted(200), 0)


def savepoint() -> None:
    with session(autocommit=False) as connection:
        connection.execute(f"INSERT INTO {TABLE} VALUES (300)")
        # Its own savepoint takes this back, and nothing else.
        fails("23505", lambda: connection.execute(f"INSERT INTO {TABLE} VALUES (?)", 300))
        connection.execute(f"INSERT INTO {TABLE} VALUES (301)")
        connection.commit()
        equal(noted(300) + noted(301), 2)


def error() -> None:
    with session() as connection:
        for _ in range(3):
            fails("22012", lambda: connection.execute("SELECT 1/?::integer", 0).fetchall())
            fails("42601", lambda: connection.execute("SELEC 1"))
            equal(value(connection, "SELECT 1"), 1)


def error_in_transaction() -> None:
    # Told to make no savepoints.
    with session(autocommit=False, options="Protocol=7.4-0") as connection:
        for _ in range(3):
            fails("22012", lambda: connection.execute("SELECT 1/0"))
            fails("25P02", lambda: connection.execute("SELECT 1"))
            connection.rollback()
            equal(value(connection, "SELECT 1"), 1)
            connection.commit()


def cursor() -> None:
    with session(autocommit=False, options="UseDeclareFetch=1;Fetch=100") as connection:
        rows = connection.execute("SELECT generate_series(1, 10000)")
        equal(sum(row[0] for row in rows), 50_005_000)
        connection.commit()


def cancel() -> None:
    with session() as connection, connection.cursor() as running:
        timer = threading.Timer(0.5, running.cancel)
        timer.start()
        fails("57014", lambda: running.execute("SELECT pg_sleep(30)"))
        timer.join()
        equal(value(connection, "SELECT 1"), 1)


def big_row() -> None:
    with session(options="MaxLongVarcharSize=8388608") as connection:
        equal(value(connection, "SELECT ?::text", BIG), BIG)


def batch() -> None:
    with session() as connection, connection.cursor() as many:
        many.executemany(f"INSERT INTO {TABLE} (id) VALUES (?)", [(number,) for number in range(500, 600)])
        equal(value(connection, f"SELECT count(*) FROM {TABLE} WHERE id BETWEEN 500 AND 599"), 100)


def settings() -> None:
    with session() as connection, session() as other:
        connection.execute("SET work_mem = '7MB'")
        for _ in range(20):
            equal(value(connection, "SHOW work_mem"), "7MB")
            assert value(other, "SHOW work_mem") != "7MB"


def many_connections() -> None:
    def add(_: int) -> None:
        with session(autocommit=False) as connection:
            for _ in range(10):
                connection.execute(f"UPDATE {TABLE} SET number = number + 1 WHERE id = ?", 0)
                connection.commit()

    with session() as connection:
        before = value(connection, f"SELECT number FROM {TABLE} WHERE id = 0 FOR SHARE")
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(add, range(8)))
        equal(value(connection, f"SELECT number FROM {TABLE} WHERE id = 0 FOR SHARE") - before, 80)


def replica() -> None:
    with session() as connection:
        # psqlodbc shows boolean as "1" and "0".
        until(lambda: value(connection, "SELECT pg_is_in_recovery()::integer") == 1)


def read_your_write() -> None:
    with session() as connection:
        for number in range(700, 750):
            connection.execute(f"INSERT INTO {TABLE} (id) VALUES (?)", number)
            equal(value(connection, f"SELECT id FROM {TABLE} WHERE id = ?", number), number)


if __name__ == "__main__":
    with session() as connection:
        found = connection.getinfo(pyodbc.SQL_DRIVER_VER)
    run(found, globals())
