"""psycopg 3, asynchronous."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
from psycopg import errors
from psycopg.types.json import Jsonb

from tests.drivers.python.report import BIG, NUMERIC, TABLE, UNICODE, equal, run


async def session(autocommit: bool = True) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect("", autocommit=autocommit)


async def value(connection: psycopg.AsyncConnection[Any], statement: str, *parameters: object) -> Any:
    row = await (await connection.execute(statement, parameters or None)).fetchone()
    assert row is not None
    return row[0]


async def fails(connection: psycopg.AsyncConnection[Any], statement: str, sqlstate: str) -> None:
    try:
        await connection.execute(statement)
    except psycopg.Error as error:
        equal(error.sqlstate, sqlstate)
    else:
        raise AssertionError(f"{statement} didn't fail")


async def noted(number: int) -> int:
    async with await session() as other:
        found = await other.execute(f"SELECT id FROM {TABLE} WHERE id = %s FOR SHARE", (number,))
        return len(await found.fetchall())


async def connect() -> None:
    async with await session() as connection:
        equal(await value(connection, "SELECT 1"), 1)
        assert connection.info.server_version >= 150000


async def types() -> None:
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
    async with await session() as connection:
        for kind, one in values.items():
            equal(await value(connection, f"SELECT %b::{kind}", one), one)
        equal(await value(connection, "SELECT %s", Jsonb({"a": [1, None]})), {"a": [1, None]})


async def prepared() -> None:
    async with await session() as connection:
        for number in range(20):
            equal(await value(connection, "SELECT %s::integer + 1", number), number + 1)
            equal(await value(connection, "SELECT %s::text || 'x'", str(number)), f"{number}x")
            async with connection.transaction():
                equal(await value(connection, "SELECT %s::integer + 2", number), number + 2)


async def commit() -> None:
    async with await session(autocommit=False) as connection:
        await connection.execute(f"INSERT INTO {TABLE} VALUES (100, 'kept')")
        await connection.commit()
        equal(await noted(100), 1)


async def rollback() -> None:
    async with await session(autocommit=False) as connection:
        await connection.execute(f"INSERT INTO {TABLE} VALUES (200, 'gone')")
        await connection.rollback()
        equal(await noted(200), 0)


async def savepoint() -> None:
    async with await session() as connection:
        async with connection.transaction():
            await connection.execute(f"INSERT INTO {TABLE} VALUES (300)")
            try:
                async with connection.transaction():
                    await connection.execute(f"INSERT INTO {TABLE} VALUES (300)")
            except errors.UniqueViolation:
                await connection.execute(f"INSERT INTO {TABLE} VALUES (301)")
        equal(await noted(300) + await noted(301), 2)


async def error() -> None:
    async with await session() as connection:
        for _ in range(3):
            await fails(connection, "SELECT 1/0", "22012")
            await fails(connection, "SELEC 1", "42601")
            equal(await value(connection, "SELECT 1"), 1)


async def error_in_transaction() -> None:
    async with await session(autocommit=False) as connection:
        for _ in range(3):
            await fails(connection, "SELECT 1/0", "22012")
            await fails(connection, "SELECT 1", "25P02")
            await connection.rollback()
            equal(await value(connection, "SELECT 1"), 1)
            await connection.commit()


async def copy_in() -> None:
    async with await session() as connection, connection.cursor() as cursor:
        async with cursor.copy(f"COPY {TABLE} (id, note) FROM STDIN") as copy:
            for number in range(10000):
                await copy.write_row((1_000_000 + number, UNICODE))
        equal(cursor.rowcount, 10000)


async def copy_out() -> None:
    async with await session() as connection, connection.cursor() as cursor:
        size = 0
        async with cursor.copy("COPY (SELECT generate_series(10000, 19999)) TO STDOUT") as copy:
            async for block in copy:
                size += len(block)
        equal(size, 60000)


async def cursor() -> None:
    async with await session(autocommit=False) as connection:
        async with connection.cursor(name="portions") as portions:
            portions.itersize = 100
            await portions.execute("SELECT generate_series(1, 10000)")
            total = 0
            async for row in portions:
                total += row[0]
        equal(total, 50_005_000)


async def cancel() -> None:
    async with await session() as connection:
        task = asyncio.create_task(fails(connection, "SELECT pg_sleep(30)", "57014"))
        await asyncio.sleep(0.5)
        await connection.cancel_safe()
        await task
        equal(await value(connection, "SELECT 1"), 1)


async def listen() -> None:
    async with await session() as listener, await session() as sender:
        await listener.execute("LISTEN psycopg3_async_news")
        for number in range(3):
            await sender.execute("SELECT pg_notify('psycopg3_async_news', %s)", (str(number),))
        heard = [each.payload async for each in listener.notifies(timeout=10, stop_after=3)]
        equal(heard, ["0", "1", "2"])


async def big_row() -> None:
    async with await session() as connection:
        equal(await value(connection, "SELECT %s::text", BIG), BIG)


async def batch() -> None:
    async with await session() as connection:
        async with connection.pipeline():
            answers = [await connection.execute("SELECT %s::integer", (number,)) for number in range(100)]
        equal([await answer.fetchone() for answer in answers], [(number,) for number in range(100)])
        many = connection.cursor()
        rows = [(500 + number,) for number in range(100)]
        await many.executemany(f"INSERT INTO {TABLE} (id) VALUES (%s)", rows)
        equal(many.rowcount, 100)


async def settings() -> None:
    async with await session() as connection, await session() as other:
        await connection.execute("SET work_mem = '7MB'")
        for _ in range(20):
            equal(await value(connection, "SHOW work_mem"), "7MB")
            assert await value(other, "SHOW work_mem") != "7MB"


async def many_connections() -> None:
    async def add() -> None:
        async with await session(autocommit=False) as connection:
            for _ in range(10):
                await connection.execute(f"UPDATE {TABLE} SET number = number + 1 WHERE id = %s", (0,))
                await connection.commit()

    async with await session() as connection:
        before = await value(connection, f"SELECT number FROM {TABLE} WHERE id = 0 FOR SHARE")
        await asyncio.gather(*(add() for _ in range(8)))
        equal(await value(connection, f"SELECT number FROM {TABLE} WHERE id = 0 FOR SHARE") - before, 80)


async def replica() -> None:
    async with await session() as connection, asyncio.timeout(10):
        while not await value(connection, "SELECT pg_is_in_recovery()"):
            await asyncio.sleep(0.05)


async def read_your_write() -> None:
    async with await session() as connection:
        for number in range(700, 750):
            await connection.execute(f"INSERT INTO {TABLE} (id) VALUES (%s)", (number,))
            equal(await value(connection, f"SELECT id FROM {TABLE} WHERE id = %s", number), number)


if __name__ == "__main__":
    run(psycopg.__version__, globals())
