"""psycopg 3, synchronous."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
from psycopg import errors
from psycopg.types.json import Jsonb

from tests.drivers.python.report import BIG, NUMERIC, TABLE, UNICODE, equal, run, until


def session(autocommit: bool = True) -> psycopg.Connection[Any]:
    return psycopg.connect("", autocommit=autocommit)


def value(connection: psycopg.Connection[Any], statement: str, *parameters: object) -> Any:
    row = connection.execute(statement, parameters or None).fetchone()
    assert row is not None
    return row[0]


def fails(connection: psycopg.Connection[Any], statement: str, sqlstate: str) -> None:
    try:
        connection.execute(statement)
    except psycopg.Error as error:
        equal(error.sqlstate, sqlstate)
    else:
        raise AssertionError(f"{statement} didn't fail")


def noted(number: int) -> int:
    with session() as other:
        rows = other.execute(f"SELECT id FROM {TABLE} WHERE id = %s FOR SHARE", (number,)).fetchall()
    return len(rows)


def connect() -> None:
    with session() as connection:
        equal(value(connection, "SELECT 1"), 1)
        assert connection.info.server_version >= 150000


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
        for binary in (False, True):
            for kind, one in values.items():
                row = connection.execute(f"SELECT %s::{kind}", (one,), binary=binary).fetchone()
                equal(row, (one,))
            equal(value(connection, "SELECT %s", Jsonb({"a": [1, None]})), {"a": [1, None]})


def prepared() -> None:
    with session() as connection:
        for number in range(20):
            equal(value(connection, "SELECT %s::integer + 1", number), number + 1)
            equal(value(connection, "SELECT %s::text || 'x'", str(number)), f"{number}x")
            with connection.transaction():
                equal(value(connection, "SELECT %s::integer + 2", number), number + 2)


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
    with session() as connection:
        with connection.transaction():
            connection.execute(f"INSERT INTO {TABLE} VALUES (300)")
            try:
                with connection.transaction():
                    connection.execute(f"INSERT INTO {TABLE} VALUES (300)")
            except errors.UniqueViolation:
                connection.execute(f"INSERT INTO {TABLE} VALUES (301)")
        equal(noted(300) + noted(301), 2)


def error() -> None:
    with session() as connection:
        for _ in range(3):
            fails(connection, "SELECT 1/0", "22012")
            fails(connection, "SELEC 1", "42601")
            equal(value(connection, "SELECT 1"), 1)


def error_in_transaction() -> None:
    with session(autocommit=False) as connection:
        for _ in range(3):
            fails(connection, "SELECT 1/0", "22012")
            fails(connection, "SELECT 1", "25P02")
            connection.rollback()
            equal(value(connection, "SELECT 1"), 1)
            connection.commit()


def copy_in() -> None:
    with session() as connection, connection.cursor() as cursor:
        with cursor.copy(f"COPY {TABLE} (id, note) FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            for number in range(10000):
                copy.write_row((1_000_000 + number, UNICODE))
        equal(cursor.rowcount, 10000)


def copy_out() -> None:
    with session() as connection, connection.cursor() as cursor:
        with cursor.copy("COPY (SELECT generate_series(1, 10000), 'ü') TO STDOUT") as copy:
            rows = list(copy.rows())
        equal((len(rows), rows[-1]), (10000, ("10000", "ü")))


def cursor() -> None:
    with session(autocommit=False) as connection, connection.cursor(name="portions") as portions:
        portions.itersize = 100
        portions.execute("SELECT generate_series(1, 10000)")
        equal(sum(row[0] for row in portions), 50_005_000)


def cancel() -> None:
    with session() as connection:
        timer = threading.Timer(0.5, connection.cancel_safe)
        timer.start()
        fails(connection, "SELECT pg_sleep(30)", "57014")
        timer.join()
        equal(value(connection, "SELECT 1"), 1)


def listen() -> None:
    with session() as listener, session() as sender:
        listener.execute("LISTEN psycopg3_news")
        for number in range(3):
            sender.execute("SELECT pg_notify('psycopg3_news', %s)", (str(number),))
        heard = [notification.payload for notification in listener.notifies(timeout=10, stop_after=3)]
        equal(heard, ["0", "1", "2"])


def big_row() -> None:
    with session() as connection:
        equal(value(connection, "SELECT %s::text", BIG), BIG)


def batch() -> None:
    with session() as connection:
        with connection.pipeline():
            answers = [connection.execute("SELECT %s::integer", (number,)) for number in range(100)]
        equal([answer.fetchone() for answer in answers], [(number,) for number in range(100)])
        many = connection.cursor()
        many.executemany(f"INSERT INTO {TABLE} (id) VALUES (%s)", [(500 + number,) for number in range(100)])
        equal(many.rowcount, 100)


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
                connection.execute(f"UPDATE {TABLE} SET number = number + 1 WHERE id = %s", (0,))
                connection.commit()

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
            connection.execute(f"INSERT INTO {TABLE} (id) VALUES (%s)", (number,))
            equal(value(connection, f"SELECT id FROM {TABLE} WHERE id = %s", number), number)


if __name__ == "__main__":
    run(psycopg.__version__, globals())
