"""pg8000: the protocol in Python alone."""

from __future__ import annotations

import io
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import version
from typing import Any

import pg8000.native

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

TLS = ssl.create_default_context(cafile=AUTHORITY) if AUTHORITY else None


@contextmanager
def session() -> Iterator[Any]:
    connection = pg8000.native.Connection(USER, HOST, DATABASE, PORT, PASSWORD, ssl_context=TLS)
    try:
        yield connection
    finally:
        connection.close()


def value(connection: Any, statement: str, **parameters: object) -> Any:
    return connection.run(statement, **parameters)[0][0]


def fails(sqlstate: str, work: Callable[[], object]) -> None:
    try:
        work()
    except pg8000.native.DatabaseError as error:
        equal(error.args[0]["C"], sqlstate)
    else:
        raise AssertionError(f"it didn't fail with {sqlstate}")


def noted(number: int) -> int:
    with session() as other:
        return len(other.run(f"SELECT id FROM {TABLE} WHERE id = :id FOR SHARE", id=number))


def connect() -> None:
    with session() as connection:
        equal(value(connection, "SELECT 1"), 1)


def types() -> None:
    values = {
        "integer": 2**31 - 1,
        "bigint": -(2**53) - 1,
        "numeric": Decimal(NUMERIC),
        "text": UNICODE,
        "bytea": b"\x00\xff'\\",
        "timestamptz": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        "integer[]": [1, 2, None],
        "text[]": ["a", None, 'with "quotes", {braces}'],
        "boolean": True,
        "date": None,
    }
    with session() as connection:
        for kind, one in values.items():
            equal(value(connection, f"SELECT CAST(:one AS {kind})", one=one), one)
        equal(value(connection, "SELECT CAST(:one AS jsonb)", one='{"a": [1, null]}'), {"a": [1, None]})


def prepared() -> None:
    with session() as connection:
        plus = connection.prepare("SELECT CAST(:one AS integer) + 1")
        joined = connection.prepare("SELECT CAST(:one AS text) || 'x'")
        for number in range(20):
            equal(plus.run(one=number), [[number + 1]])
            equal(joined.run(one=str(number)), [[f"{number}x"]])
            connection.run("START TRANSACTION")
            equal(plus.run(one=number), [[number + 1]])
            connection.run("COMMIT")
        plus.close()
        joined.close()


def commit() -> None:
    with session() as connection:
        connection.run("START TRANSACTION")
        connection.run(f"INSERT INTO {TABLE} VALUES (100, 'kept')")
        connection.run("COMMIT")
        equal(noted(100), 1)


def rollback() -> None:
    with session() as connection:
        connection.run("START TRANSACTION")
        connection.run(f"INSERT INTO {TABLE} VALUES (200, 'gone')")
        connection.run("ROLLBACK")
        equal(noted(200), 0)


def savepoint() -> None:
    with session() as connection:
        connection.run("START TRANSACTION")
        connection.run(f"INSERT INTO {TABLE} VALUES (300)")
        connection.run("SAVEPOINT here")
        fails("23505", lambda: connection.run(f"INSERT INTO {TABLE} VALUES (:id)", id=300))
        connection.run("ROLLBACK TO here")
        connection.run(f"INSERT INTO {TABLE} VALUES (301)")
        connection.run("COMMIT")
        equal(noted(300) + noted(301), 2)


def error() -> None:
    with session() as connection:
        for _ in range(3):
            fails("22012", lambda: connection.run("SELECT 1 / CAST(:zero AS integer)", zero=0))
            fails("42601", lambda: connection.run("SELEC 1"))
            equal(value(connection, "SELECT 1"), 1)


def error_in_transaction() -> None:
    with session() as connection:
        for _ in range(3):
            connection.run("START TRANSACTION")
            fails("22012", lambda: connection.run("SELECT 1/0"))
            fails("25P02", lambda: connection.run("SELECT CAST(:one AS integer)", one=1))
            connection.run("ROLLBACK")
            equal(value(connection, "SELECT 1"), 1)


def copy_in() -> None:
    rows = io.StringIO("".join(f"{1_000_000 + number}\t{UNICODE}\n" for number in range(10000)))
    with session() as connection:
        connection.run(f"COPY {TABLE} (id, note) FROM STDIN", stream=rows)
        equal(connection.row_count, 10000)


def copy_out() -> None:
    out = io.StringIO()
    with session() as connection:
        connection.run("COPY (SELECT generate_series(10000, 19999)) TO STDOUT", stream=out)
        equal(len(out.getvalue()), 60000)


def cursor() -> None:
    with session() as connection:
        connection.run("START TRANSACTION")
        connection.run("DECLARE portions CURSOR FOR SELECT generate_series(1, 10000)")
        total = 0
        while rows := connection.run("FETCH 100 FROM portions"):
            total += sum(row[0] for row in rows)
        connection.run("COMMIT")
        equal(total, 50_005_000)


def listen() -> None:
    with session() as listener, session() as sender:
        listener.run("LISTEN pg8000_news")
        for number in range(3):
            sender.run("SELECT pg_notify('pg8000_news', :number)", number=str(number))

        def heard() -> bool:
            listener.run("SELECT 1")
            return len(listener.notifications) == 3

        until(heard)
        equal([payload for _, _, payload in listener.notifications], ["0", "1", "2"])


def big_row() -> None:
    with session() as connection:
        equal(value(connection, "SELECT CAST(:big AS text)", big=BIG), BIG)


def batch() -> None:
    with session() as connection:
        inserts = "; ".join(f"INSERT INTO {TABLE} (id) VALUES ({number})" for number in range(500, 600))
        connection.run(inserts)
        count = f"SELECT count(*) FROM {TABLE} WHERE id BETWEEN :first AND :last"
        equal(value(connection, count, first=500, last=599), 100)


def settings() -> None:
    with session() as connection, session() as other:
        connection.run("SET work_mem = '7MB'")
        for _ in range(20):
            equal(value(connection, "SHOW work_mem"), "7MB")
            assert value(other, "SHOW work_mem") != "7MB"


def many_connections() -> None:
    def add(_: int) -> None:
        with session() as connection:
            for _ in range(10):
                connection.run("START TRANSACTION")
                connection.run(f"UPDATE {TABLE} SET number = number + 1 WHERE id = :id", id=0)
                connection.run("COMMIT")

    with session() as connection:
        before = value(connection, f"SELECT number FROM {TABLE} WHERE id = 0 FOR SHARE")
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(add, range(8)))
        equal(value(connection, f"SELECT number FROM {TABLE} WHERE id = 0 FOR SHARE") - before, 80)


def replica() -> None:
    with session() as connection:
        until(lambda: bool(value(connection, "SELECT pg_is_in_recovery()")))


def read_your_write() -> None:
    with session() as connection:
        for number in range(700, 750):
            connection.run(f"INSERT INTO {TABLE} (id) VALUES (:id)", id=number)
            equal(value(connection, f"SELECT id FROM {TABLE} WHERE id = :id", id=number), number)


if __name__ == "__main__":
    run(version("pg8000"), globals())
