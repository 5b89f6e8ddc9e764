"""psycopg2: libpq's simple protocol, and prepared statements in SQL."""

from __future__ import annotations

import io
import select
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg2
from psycopg2.extras import Json, execute_batch

from tests.drivers.python.report import BIG, NUMERIC, TABLE, UNICODE, equal, run, until


@contextmanager
def session(autocommit: bool = True) -> Iterator[Any]:
    with closing(psycopg2.connect("")) as connection:
        connection.autocommit = autocommit
        yield connection


def execute(connection: Any, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return list(cursor.fetchall()) if cursor.description else []


def value(connection: Any, statement: str, *parameters: object) -> Any:
    return execute(connection, statement, *parameters)[0][0]


def fails(sqlstate: str, work: Callable[[], object]) -> None:
    try:
        work()
    except psycopg2.Error as error:
        equal(error.pgcode, sqlstate)
    else:
        raise AssertionError(f"it didn't fail with {sqlstate}")


def noted(number: int) -> int:
    with session() as other:
        return len(execute(other, f"SELECT id FROM {TABLE} WHERE id = %s FOR SHARE", number))


def connect() -> None:
    with session() as connection:
        equal(value(connection, "SELECT 1"), 1)
        assert connection.server_version >= 150000


def types() -> None:
    values = {
        "integer": 2**31 - 1,
        "bigint": -(2**53) - 1,
        "numeric": Decimal(NUMERIC),
        "text": UNICODE,
        "timestamptz": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        "integer[]": [1, 2, None],
        "text[]": ["a", None, 'with "quotes", {braces}'],
        "boolean": True,
        "date": None,
    }
    with session() as connection:
        for kind, one in values.items():
            equal(value(connection, f"SELECT %s::{kind}", one), one)
        equal(bytes(value(connection, "SELECT %s::bytea", b"\x00\xff'\\")), b"\x00\xff'\\")
        equal(value(connection, "SELECT %s::jsonb", Json({"a": [1, None]})), {"a": [1, None]})


def prepared() -> None:
    with session() as connection:
        execute(connection, "PREPARE plus (integer) AS SELECT $1 + 1")
        execute(connection, "PREPARE s (text) AS SELECT $1 || 'x'")
        for number in range(20):
            equal(value(connection, "EXECUTE plus (%s)", number), number + 1)
            equal(value(connection, "EXECUTE s (%s)", str(number)), f"{number}x")
        execute(connection, "DEALLOCATE plus")
        fails("26000", lambda: execute(connection, "EXECUTE plus (1)"))


def commit() -> None:
    with session(autocommit=False) as connection:
        execute(connection, f"INSERT INTO {TABLE} VALUES (100, 'kept')")
        connection.commit()
        equal(noted(100), 1)


def rollback() -> None:
    with session(autocommit=False) as connection:
        execute(connection, f"INSERT INTO {TABLE} VALUES (200, 'gone')")
        connection.rollback()
        equal(noted(200), 0)


def savepoint() -> None:
    with session(autocommit=False) as connection:
        execute(connection, f"INSERT INTO {TABLE} VALUES (300)")
        execute(connection, "SAVEPOINT here")
        fails("23505", lambda: execute(connection, f"INSERT INTO {TABLE} VALUES (300)"))
        execute(connection, "ROLLBACK TO here")
        execute(connection, f"INSERT INTO {TABLE} VALUES (301)")
        connection.commit()
        equal(noted(300) + noted(301), 2)


def error() -> None:
    with session() as connection:
        for _ in range(3):
            fails("22012", lambda: execute(connection, "SELECT 1/0"))
            fails("42601", lambda: execute(connection, "SELEC 1"))
            equal(value(connection, "SELECT 1"), 1)


def error_in_transaction() -> None:
    with session(autocommit=False) as connection:
        for _ in range(3):
            fails("22012", lambda: execute(connection, "SELECT 1/0"))
            fails("25P02", lambda: execute(connection, "SELECT 1"))
            connection.rollback()
            equal(value(connection, "SELECT 1"), 1)
            connection.commit()


def copy_in() -> None:
    rows = "".join(f"{1_000_000 + number}\t{UNICODE}\n" for number in range(10000))
    with session() as connection, connection.cursor() as cursor:
        cursor.copy_from(io.StringIO(rows), TABLE, columns=("id", "note"))
        equal(cursor.rowcount, 10000)


def copy_out() -> None:
    with session() as connection, connection.cursor() as cursor:
        out = io.StringIO()
        cursor.copy_expert("COPY (SELECT generate_series(10000, 19999)) TO STDOUT", out)
        equal(len(out.getvalue()), 60000)


def cursor() -> None:
    with session(autocommit=False) as connection, connection.cursor("portions") as portions:
        portions.itersize = 100
        portions.execute("SELECT generate_series(1, 10000)")
        equal(sum(row[0] for row in portions), 50_005_000)


def cancel() -> None:
    with session() as connection:
        timer = threading.Timer(0.5, connection.cancel)
        timer.start()
        fails("57014", lambda: execute(connection, "SELECT pg_sleep(30)"))
        timer.join()
        equal(value(connection, "SELECT 1"), 1)


def listen() -> None:
    with session() as listener, session() as sender:
        execute(listener, "LISTEN psycopg2_news")
        for number in range(3):
            execute(sender, "SELECT pg_notify('psycopg2_news', %s)", str(number))
        while len(listener.notifies) < 3:
            assert select.select([listener], [], [], 10)[0], "nothing came within 10 s"
            listener.poll()
        equal([each.payload for each in listener.notifies], ["0", "1", "2"])


def big_row() -> None:
    with session() as connection:
        equal(value(connection, "SELECT %s::text", BIG), BIG)


def batch() -> None:
    with session() as connection, connection.cursor() as cursor:
        rows = [(number,) for number in range(500, 600)]
        execute_batch(cursor, f"INSERT INTO {TABLE} (id) VALUES (%s)", rows, page_size=100)
        equal(value(connection, f"SELECT count(*) FROM {TABLE} WHERE id BETWEEN 500 AND 599"), 100)


def settings() -> None:
    with session() as connection, session() as other:
        execute(connection, "SET work_mem = '7MB'")
        for _ in range(20):
            equal(value(connection, "SHOW work_mem"), "7MB")
            assert value(other, "SHOW work_mem") != "7MB"


def many_connections() -> None:
    def add(_: int) -> None:
        with session(autocommit=False) as connection:
            for _ in range(10):
                execute(connection, f"UPDATE {TABLE} SET number = number + 1 WHERE id = %s", 0)
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
            execute(connection, f"INSERT INTO {TABLE} (id) VALUES (%s)", number)
            equal(value(connection, f"SELECT id FROM {TABLE} WHERE id = %s", number), number)


if __name__ == "__main__":
    run(psycopg2.__version__.split()[0], globals())
