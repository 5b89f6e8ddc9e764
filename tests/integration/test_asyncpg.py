"""asyncpg through the proxy: it prepares everything, talks binary, and resets connections of its pools."""

from __future__ import annotations

import asyncio
import io
from decimal import Decimal

import asyncpg
import pytest

from tests.integration.conftest import MakeTable
from tests.integration.support import Installation, Login


async def test_values_come_back_as_they_went(reader: Login) -> None:
    async with reader.asyncpg() as connection:
        row = await connection.fetchrow(
            "SELECT $1::bigint, $2::numeric, $3::text[], $4::jsonb, $5::bytea, $6::interval IS NULL",
            2**40,
            Decimal("1.000000000000000000001"),
            ["a", None, "ü"],
            '{"a": 1}',
            b"\x00\x01",
            None,
        )
        assert row is not None
        assert tuple(row) == (
            2**40,
            Decimal("1.000000000000000000001"),
            ["a", None, "ü"],
            '{"a": 1}',
            b"\x00\x01",
            True,
        )


async def test_prepared_statements_are_the_connection_s_own(writer: Login) -> None:
    async with writer.asyncpg() as one, writer.asyncpg() as other:
        first = await one.prepare("SELECT $1::integer + 1")
        second = await other.prepare("SELECT $1::integer + 2")
        for number in range(20):
            assert await first.fetchval(number) == number + 1
            assert await second.fetchval(number) == number + 2
        assert [attribute.type.name for attribute in first.get_attributes()] == ["int4"]


async def test_transactions_nest(writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer PRIMARY KEY")
    async with writer.asyncpg() as connection:
        async with connection.transaction():
            await connection.execute(f"INSERT INTO {table} VALUES (1)")
            with pytest.raises(asyncpg.UniqueViolationError):
                async with connection.transaction():
                    await connection.execute(f"INSERT INTO {table} VALUES (1)")
            await connection.execute(f"INSERT INTO {table} VALUES (2)")
        rows = await connection.fetch(f"SELECT id FROM {table} ORDER BY id FOR SHARE")
    assert [tuple(row) for row in rows] == [(1,), (2,)]


@pytest.mark.parametrize("isolation", ["read_committed", "repeatable_read", "serializable"])
async def test_isolation_levels_are_obeyed(isolation: str, writer: Login) -> None:
    async with writer.asyncpg() as connection:
        async with connection.transaction(isolation=isolation):  # type: ignore[arg-type]  # one of its literals
            shown = await connection.fetchval("SHOW transaction_isolation")
        assert shown == isolation.replace("_", " ")


async def test_a_transaction_that_chose_to_be_read_only_does_not_write(
    writer: Login, make_table: MakeTable
) -> None:
    table = make_table("id integer")
    async with writer.asyncpg() as connection:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            async with connection.transaction(readonly=True):
                await connection.execute(f"INSERT INTO {table} VALUES (1)")
        assert await connection.fetchval("SELECT 1") == 1


async def test_cursors_in_a_transaction(reader: Login) -> None:
    async with reader.asyncpg() as connection, connection.transaction():
        total = 0
        async for record in connection.cursor("SELECT generate_series(1, $1::integer)", 1000, prefetch=64):
            total += record[0]
        assert total == 500500
        cursor = await connection.cursor("SELECT generate_series(1, 100)")
        await cursor.forward(10)
        row = await cursor.fetchrow()
    assert row is not None and tuple(row) == (11,)


async def test_binary_copy_of_records(writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer, name text")
    async with writer.asyncpg() as connection:
        rows = [(number, f"name {number}") for number in range(10000)]
        assert await connection.copy_records_to_table(table, records=rows) == "COPY 10000"
        out = io.BytesIO()
        await connection.copy_from_query(
            f"SELECT * FROM {table} WHERE id < $1 ORDER BY id", 3, output=out, format="csv"
        )
        assert out.getvalue() == b"0,name 0\n1,name 1\n2,name 2\n"


async def test_executemany_is_one_transaction(writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer PRIMARY KEY")
    async with writer.asyncpg() as connection:
        await connection.executemany(f"INSERT INTO {table} VALUES ($1)", [(number,) for number in range(500)])
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.executemany(f"INSERT INTO {table} VALUES ($1)", [(1000,), (1,)])
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 500


async def test_a_timeout_cancels_and_the_connection_goes_on(writer: Login) -> None:
    async with writer.asyncpg() as connection:
        with pytest.raises(TimeoutError):
            await connection.execute("SELECT pg_sleep(30)", timeout=0.2)
        assert await connection.fetchval("SELECT 1") == 1


async def test_many_timeouts_cancel_nobody_else(writer: Login) -> None:
    async def impatient() -> None:
        async with writer.asyncpg() as connection:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await connection.execute("SELECT pg_sleep(30)", timeout=0.1)
                assert await connection.fetchval("SELECT 1") == 1

    async def patient() -> None:
        async with writer.asyncpg() as connection:
            for _ in range(20):
                await connection.execute("SELECT pg_sleep(0.05)")

    await asyncio.gather(patient(), *(impatient() for _ in range(4)))


async def test_a_pool_resets_what_its_users_left(writer: Login) -> None:
    async with asyncpg.create_pool(**writer.for_asyncpg(), min_size=1, max_size=1) as pool:
        async with pool.acquire() as connection:
            assert await connection.fetchval("SHOW timezone") == "UTC"
            await connection.execute("SET timezone = 'Asia/Tokyo'")
            assert await connection.fetchval("SHOW timezone") == "Asia/Tokyo"
        for _ in range(3):
            async with pool.acquire() as connection:
                assert await connection.fetchval("SHOW timezone") == "UTC"


async def test_a_pool_of_twenty_serves_two_hundred_requests(writer: Login) -> None:
    async with asyncpg.create_pool(**writer.for_asyncpg(), min_size=20, max_size=20) as pool:
        answers = await asyncio.gather(
            *(pool.fetchval("SELECT $1::integer", number) for number in range(200))
        )
    assert answers == list(range(200))


async def test_notifications_reach_their_listener(writer: Login) -> None:
    async with writer.asyncpg() as listener, writer.asyncpg() as sender:
        heard: asyncio.Queue[object] = asyncio.Queue()
        await listener.add_listener("asyncpg_news", lambda *message: heard.put_nowait(message[3]))
        for number in range(3):
            await sender.execute("SELECT pg_notify('asyncpg_news', $1)", str(number))
        assert [await asyncio.wait_for(heard.get(), 10) for _ in range(3)] == ["0", "1", "2"]
        await listener.remove_listener("asyncpg_news", print)


async def test_composite_types_are_looked_up(writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer, name text", "VALUES (1, 'one')")
    async with writer.asyncpg() as connection:
        row = await connection.fetchval(f"SELECT t FROM {table} t FOR SHARE")
        assert tuple(row) == (1, "one")


async def test_an_empty_query_and_several_statements(writer: Login) -> None:
    async with writer.asyncpg() as connection:
        assert await connection.fetch("") == []
        assert await connection.execute("SELECT 1; SELECT 2 FROM generate_series(1, 3)") == "SELECT 3"


async def test_a_table_that_changed_before_ones_own_prepare_is_no_error(
    writer: Login, make_table: MakeTable, installation: Installation
) -> None:
    table = make_table("id integer", "VALUES (1)")
    sql = f"SELECT * FROM {table} FOR SHARE"
    async with writer.asyncpg() as one:
        for _ in range(3):
            assert [tuple(row) for row in await one.fetch(sql)] == [(1,)]
        installation.execute(f"ALTER TABLE public.{table} ADD COLUMN more integer DEFAULT 2")
        async with writer.asyncpg() as other:
            for _ in range(3):
                assert [tuple(row) for row in await other.fetch(sql)] == [(1, 2)]
