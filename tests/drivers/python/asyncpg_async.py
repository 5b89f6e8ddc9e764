"""asyncpg: it prepares each statement, and talks binary."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import asyncpg

from tests.drivers.python.report import BIG, NUMERIC, TABLE, UNICODE, equal, run


@asynccontextmanager
async def session() -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect()
    try:
        yield connection
    finally:
        await connection.close(timeout=10)


async def fails(sqlstate: str, work: Awaitable[object]) -> None:
    try:
        await work
    except asyncpg.PostgresError as error:
        equal(error.sqlstate, sqlstate)
    else:
        raise AssertionError(f"it didn't fail with {sqlstate}")


async def noted(number: int) -> int:
    async with session() as other:
        return len(await other.fetch(f"SELECT id FROM {TABLE} WHERE id = $1 FOR SHARE", number))


async def connect() -> None:
    async with session() as connection:
        equal(await connection.fetchval("SELECT 1"), 1)
        assert connection.get_server_version().major >= 15


async def types() -> None:
    values = {
        "integer": 2**31 - 1,
        "bigint": -(2**53) - 1,
        "numeric": Decimal(NUMERIC),
        "text": UNICODE,
        "bytea": b"\x00\xff'\\",
        "timestamptz": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        "jsonb": '{"a": [1, null]}',
        "integer[]": [1, 2, None],
        "text[]": ["a", None, 'with "quotes", {braces}'],
        "boolean": True,
        "date": None,
    }
    async with session() as connection:
        for kind, one in values.items():
            equal(await connection.fetchval(f"SELECT $1::{kind}", one), one)


async def prepared() -> None:
    async with session() as connection:
        plus = await connection.prepare("SELECT $1::integer + 1")
        joined = await connection.prepare("SELECT $1::text || 'x'")
        for number in range(20):
            equal(await plus.fetchval(number), number + 1)
            equal(await joined.fetchval(str(number)), f"{number}x")
            async with connection.transaction():
                equal(await connection.fetchval("SELECT $1::integer + 2", number), number + 2)


async def commit() -> None:
    async with session() as connection:
        async with connection.transaction():
            await connection.execute(f"INSERT INTO {TABLE} VALUES ($1, $2)", 100, "kept")
        equal(await noted(100), 1)


async def rollback() -> None:
    async with session() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(f"INSERT INTO {TABLE} VALUES ($1, $2)", 200, "gone")
        await transaction.rollback()
        equal(await noted(200), 0)


async def savepoint() -> None:
    async with session() as connection:
        async with connection.transaction():
            await connection.execute(f"INSERT INTO {TABLE} VALUES (300)")
            try:
                async with connection.transaction():
                    await connection.execute(f"INSERT INTO {TABLE} VALUES (300)")
            except asyncpg.UniqueViolationError:
                await connection.execute(f"INSERT INTO {TABLE} VALUES (301)")
        equal(await noted(300) + await noted(301), 2)


async def error() -> None:
    async with session() as connection:
        for _ in range(3):
            await fails("22012", connection.fetchval("SELECT 1/$1::integer", 0))
            await fails("42601", connection.fetchval("SELEC 1"))
            equal(await connection.fetchval("SELECT 1"), 1)


async def error_in_transaction() -> None:
    async with session() as connection:
        for _ in range(3):
            transaction = connection.transaction()
            await transaction.start()
            await fails("22012", connection.fetchval("SELECT 1/$1::integer", 0))
            await fails("25P02", connection.fetchval("SELECT 1"))
            await transaction.rollback()
            equal(await connection.fetchval("SELECT 1"), 1)


async def copy_in() -> None:
    async with session() as connection:
        rows = [(1_000_000 + number, UNICODE) for number in range(10000)]
        done = await connection.copy_records_to_table(TABLE, records=rows, columns=["id", "note"])
        equal(done, "COPY 10000")


async def copy_out() -> None:
    async with session() as connection:
        out = io.BytesIO()
        await connection.copy_from_query("SELECT generate_series(10000, $1::integer)", 19999, output=out)
        equal(len(out.getvalue()), 60000)


async def cursor() -> None:
    async with session() as connection, connection.transaction():
        total = 0
        async for record in connection.cursor("SELECT generate_series(1, 10000)", prefetch=100):
            total += record[0]
        equal(total, 50_005_000)


async def cancel() -> None:
    async with session() as connection:
        try:
            # A timeout makes asyncpg cancel the statement.
            await connection.execute("SELECT pg_sleep(30)", timeout=0.5)
        except TimeoutError:
            pass
        else:
            raise AssertionError("it wasn't cancelled")
        equal(await connection.fetchval("SELECT 1"), 1)


async def listen() -> None:
    async with session() as listener, session() as sender:
        heard: asyncio.Queue[object] = asyncio.Queue()

        def hear(*message: object) -> None:
            heard.put_nowait(message[3])

        await listener.add_listener("asyncpg_news", hear)
        for number in range(3):
            await sender.execute("SELECT pg_notify('asyncpg_news', $1)", str(number))
        equal([await asyncio.wait_for(heard.get(), 10) for _ in range(3)], ["0", "1", "2"])
        await listener.remove_listener("asyncpg_news", hear)


async def big_row() -> None:
    async with session() as connection:
        equal(await connection.fetchval("SELECT $1::text", BIG), BIG)


async def batch() -> None:
    async with session() as connection:
        rows = [(number,) for number in range(500, 600)]
        await connection.executemany(f"INSERT INTO {TABLE} (id) VALUES ($1)", rows)
        found = await connection.fetchval(f"SELECT count(*) FROM {TABLE} WHERE id BETWEEN 500 AND 599")
        equal(found, 100)


async def settings() -> None:
    async with session() as connection, session() as other:
        await connection.execute("SET work_mem = '7MB'")
        for _ in range(20):
            equal(await connection.fetchval("SHOW work_mem"), "7MB")
            assert await other.fetchval("SHOW work_mem") != "7MB"


async def many_connections() -> None:
    async with asyncpg.create_pool(min_size=8, max_size=8) as pool:

        async def add() -> None:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(f"UPDATE {TABLE} SET number = number + 1 WHERE id = $1", 0)

        before = await pool.fetchval(f"SELECT number FROM {TABLE} WHERE id = 0 FOR SHARE")
        await asyncio.gather(*(add() for _ in range(80)))
        equal(await pool.fetchval(f"SELECT number FROM {TABLE} WHERE id = 0 FOR SHARE") - before, 80)


async def replica() -> None:
    async with session() as connection, asyncio.timeout(10):
        while not await connection.fetchval("SELECT pg_is_in_recovery()"):
            await asyncio.sleep(0.05)


async def read_your_write() -> None:
    async with session() as connection:
        for number in range(700, 750):
            await connection.execute(f"INSERT INTO {TABLE} (id) VALUES ($1)", number)
            equal(await connection.fetchval(f"SELECT id FROM {TABLE} WHERE id = $1", number), number)


if __name__ == "__main__":
    run(asyncpg.__version__, globals())
