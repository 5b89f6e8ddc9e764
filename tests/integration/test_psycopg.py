"""psycopg 3 through the proxy: synchronous, asynchronous and in pipeline mode."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tests.integration.conftest import MakeTable
from tests.integration.support import Login

VALUES = [
    42,
    -(2**62),
    1.5,
    Decimal("12345678901234567890.0987654321"),
    "Grüße, 世界",
    b"\x00\xff binary",
    True,
    datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    UUID("12345678-1234-5678-1234-567812345678"),
    [1, 2, None],
]


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_come_back_as_they_went(value: object, binary: bool, reader: Login) -> None:
    with reader.connect() as connection:
        row = connection.execute("SELECT %s", (value,), binary=binary).fetchone()
    assert row == (value,)


def test_a_null_byte_is_refused_by_the_server_s_rules(reader: Login) -> None:
    with reader.connect() as connection, pytest.raises(psycopg.DataError):
        connection.execute("SELECT %s", ("a\0b",))


def test_errors_keep_their_fields(writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer CONSTRAINT positive CHECK (id > 0)")
    with writer.connect() as connection, pytest.raises(psycopg.errors.CheckViolation) as caught:
        connection.execute(f"INSERT INTO {table} VALUES (-1)")
    diag = caught.value.diag
    assert (diag.sqlstate, diag.table_name, diag.constraint_name) == ("23514", table, "positive")
    assert diag.schema_name == "public"
    assert diag.message_detail == "Failing row contains (-1)."


def test_transactions_commit_and_roll_back(writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer")
    with writer.connect(autocommit=False) as connection:
        connection.execute(f"INSERT INTO {table} VALUES (1)")
        connection.rollback()
        connection.execute(f"INSERT INTO {table} VALUES (2)")
        connection.commit()
        with connection.transaction():
            connection.execute(f"INSERT INTO {table} VALUES (3)")
            with pytest.raises(psycopg.errors.DivisionByZero), connection.transaction():
                connection.execute(f"INSERT INTO {table} VALUES (4)")
                connection.execute("SELECT 1/0")
        rows = connection.execute(f"SELECT id FROM {table} ORDER BY id").fetchall()
    assert rows == [(2,), (3,)]


def test_a_failed_transaction_refuses_until_it_is_rolled_back(writer: Login) -> None:
    with writer.connect(autocommit=False) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1/0")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            connection.execute("SELECT 1")
        connection.rollback()
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_prepared_statements_work_on_whatever_connection_serves(writer: Login) -> None:
    with writer.connect() as one, writer.connect() as other:
        one.prepare_threshold = other.prepare_threshold = 0
        for number in range(30):
            assert one.execute("SELECT %s::integer + 1", (number,)).fetchone() == (number + 1,)
            with other.transaction():
                assert other.execute("SELECT %s::integer - 1", (number,)).fetchone() == (number - 1,)
                assert one.execute("SELECT %s::integer * 2", (number,)).fetchone() == (number * 2,)


def test_statements_beyond_the_client_s_limit_are_given_up(writer: Login) -> None:
    with writer.connect() as connection:
        connection.prepare_threshold = 0
        connection.prepared_max = 5
        for number in range(25):
            assert connection.execute(f"SELECT %s::integer + {number}", (1,)).fetchone() == (1 + number,)


def test_pipeline_mode_keeps_the_order_of_results(writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer PRIMARY KEY, name text")
    with writer.connect() as connection, connection.pipeline() as pipeline:
        cursors = [
            connection.execute(f"INSERT INTO {table} VALUES (%s, %s) RETURNING id", (number, f"n{number}"))
            for number in range(200)
        ]
        pipeline.sync()
        assert [cursor.fetchone() for cursor in cursors] == [(number,) for number in range(200)]
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (200,)


def test_an_error_in_a_pipeline_skips_to_its_sync(writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer PRIMARY KEY")
    with writer.connect() as connection:
        with pytest.raises(psycopg.errors.UniqueViolation), connection.pipeline():
            connection.execute(f"INSERT INTO {table} VALUES (1)")
            connection.execute(f"INSERT INTO {table} VALUES (1)")
            connection.execute(f"INSERT INTO {table} VALUES (2)")
        with connection.pipeline() as pipeline:
            connection.execute(f"INSERT INTO {table} VALUES (3)")
            pipeline.sync()
            connection.execute(f"INSERT INTO {table} VALUES (4)")
        assert connection.execute(f"SELECT id FROM {table} ORDER BY id").fetchall() == [(3,), (4,)]


def test_a_transaction_in_a_pipeline(writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer")
    with writer.connect() as connection:
        with connection.pipeline(), connection.transaction():
            for number in range(10):
                connection.execute(f"INSERT INTO {table} VALUES (%s)", (number,))
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (10,)


def test_executemany_returns_each_result(writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer")
    with writer.connect() as connection, connection.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO {table} VALUES (%s) RETURNING id", [(1,), (2,), (3,)], returning=True
        )
        returned = [cursor.fetchone()]
        while cursor.nextset():
            returned.append(cursor.fetchone())
    assert returned == [(1,), (2,), (3,)]


@pytest.mark.parametrize("layout", ["text", "binary"])
def test_copy_in_and_out(layout: str, writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer, name text")
    rows = [(number, None if number % 7 == 0 else f"row\t{number}\n") for number in range(5000)]
    with writer.connect() as connection, connection.cursor() as cursor:
        with cursor.copy(f"COPY {table} FROM STDIN (FORMAT {layout})") as copy:
            copy.set_types(["int4", "text"])
            for row in rows:
                copy.write_row(row)
        assert cursor.rowcount == 5000
        with cursor.copy(f"COPY (SELECT * FROM {table} ORDER BY id) TO STDOUT (FORMAT {layout})") as copy:
            copy.set_types(["int4", "text"])
            assert list(copy.rows()) == rows


def test_a_copy_that_the_client_gives_up_leaves_nothing(writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer")
    with writer.connect() as connection:
        with (
            pytest.raises(ValueError, match="changed my mind"),
            connection.cursor() as cursor,
            cursor.copy(f"COPY {table} FROM STDIN") as copy,
        ):
            copy.write_row((1,))
            raise ValueError("changed my mind")
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_server_side_cursors(writer: Login) -> None:
    with writer.connect(autocommit=False) as connection:
        with connection.cursor("numbers") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT generate_series(1, 1000)")
            assert sum(number for (number,) in cursor) == 500500
        with connection.cursor("scrolled", scrollable=True) as cursor:
            cursor.execute("SELECT generate_series(1, 1000)")
            cursor.scroll(500)
            assert cursor.fetchone() == (501,)
            cursor.scroll(-500)
            assert cursor.fetchmany(2) == [(2,), (3,)]


def test_a_cursor_with_hold_outlives_its_transaction(writer: Login) -> None:
    with writer.connect(autocommit=False) as connection, connection.cursor("held", withhold=True) as cursor:
        cursor.execute("SELECT generate_series(1, 100)")
        assert cursor.fetchone() == (1,)
        connection.commit()
        assert cursor.fetchmany(2) == [(2,), (3,)]


def test_rows_are_streamed_one_by_one(reader: Login) -> None:
    with reader.connect() as connection, connection.cursor() as cursor:
        assert sum(number for (number,) in cursor.stream("SELECT generate_series(1, 20000)")) == 200010000


def test_settings_are_each_client_s_own(writer: Login) -> None:
    zones = ["Asia/Tokyo", "America/New_York", "Europe/Berlin", "UTC"]
    connections = [writer.connect(prepare_threshold=None) for _ in zones]
    for connection, zone in zip(connections, zones, strict=True):
        connection.execute("SELECT set_config('timezone', %s, false)", (zone,))
    for _ in range(5):
        for connection, zone in zip(connections, zones, strict=True):
            assert connection.execute("SHOW timezone").fetchone() == (zone,)
            assert connection.info.parameter_status("TimeZone") == zone
    for connection in connections:
        connection.close()


def test_startup_options_become_settings(reader: Login) -> None:
    options = "-c timezone=Asia/Tokyo -c statement_timeout=12345"
    with reader.connect(options=options, application_name="a test's own") as connection:
        row = connection.execute(
            "SELECT current_setting('timezone'), current_setting('statement_timeout'),"
            " current_setting('application_name')"
        ).fetchone()
    assert row == ("Asia/Tokyo", "12345ms", "a test's own")


def test_client_encodings_are_converted_by_the_server(reader: Login) -> None:
    with reader.connect(client_encoding="latin1") as connection:
        assert connection.execute("SELECT 'é', length('é')").fetchone() == ("é", 1)
        assert connection.info.parameter_status("client_encoding") == "LATIN1"


def test_notices_reach_their_handler(admin: Login) -> None:
    seen: list[str | None] = []
    with admin.connect() as connection:
        connection.add_notice_handler(lambda diag: seen.append(diag.message_primary))
        connection.execute("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$")
    assert seen == ["one", "two"]


def test_notifications_reach_who_listens(writer: Login) -> None:
    with writer.connect() as listener, writer.connect() as sender:
        listener.execute("LISTEN news")
        sender.execute("SELECT pg_notify('news', 'hello')")
        received = next(iter(listener.notifies(timeout=10, stop_after=1)))
    assert (received.channel, received.payload) == ("news", "hello")


def test_advisory_locks_belong_to_their_session(writer: Login) -> None:
    with writer.connect() as holder, writer.connect() as other:
        assert holder.execute("SELECT pg_try_advisory_lock(4711)").fetchone() == (True,)
        assert other.execute("SELECT pg_try_advisory_lock(4711)").fetchone() == (False,)
        assert holder.execute("SELECT pg_advisory_unlock(4711)").fetchone() == (True,)
        assert other.execute("SELECT pg_try_advisory_lock(4711)").fetchone() == (True,)


def test_json_and_rows_as_mappings(writer: Login, make_table: MakeTable) -> None:
    table = make_table("content jsonb")
    with writer.connect(row_factory=dict_row) as connection:
        connection.execute(f"INSERT INTO {table} VALUES (%s)", (Jsonb({"a": [1, None]}),))
        assert connection.execute(f"SELECT content FROM {table} FOR SHARE").fetchall() == [
            {"content": {"a": [1, None]}}
        ]


def test_many_parameters(reader: Login) -> None:
    places = ", ".join(["%s::integer"] * 40000)
    with reader.connect() as connection:
        row = connection.execute(f"SELECT array_length(ARRAY[{places}], 1)", range(40000)).fetchone()
    assert row == (40000,)


async def test_forty_clients_add_up_at_the_same_time(writer: Login, make_table: MakeTable) -> None:
    table = make_table("total integer", "VALUES (0)")

    async def add(times: int) -> None:
        async with await writer.aconnect(autocommit=False) as connection:
            for _ in range(times):
                await connection.execute(f"UPDATE {table} SET total = total + %s", (1,))
                await connection.commit()

    await asyncio.gather(*(add(10) for _ in range(40)))
    async with await writer.aconnect() as connection:
        cursor = await connection.execute(f"SELECT total FROM {table} FOR SHARE")
        assert await cursor.fetchone() == (400,)


async def test_an_asynchronous_pipeline(writer: Login, make_table: MakeTable) -> None:
    table = make_table("id integer")
    async with await writer.aconnect() as connection:
        async with connection.pipeline():
            for number in range(50):
                await connection.execute(f"INSERT INTO {table} VALUES (%s)", (number,))
        cursor = await connection.execute(f"SELECT count(*) FROM {table} WHERE id < %s", (50,))
        assert await cursor.fetchone() == (50,)


async def test_asynchronous_copy(writer: Login, make_table: MakeTable) -> None:
    table = make_table("name text")
    async with await writer.aconnect() as connection, connection.cursor() as cursor:
        async with cursor.copy(f"COPY {table} FROM STDIN") as incoming:
            for number in range(1000):
                await incoming.write_row((f"name {number}",))
        size = 0
        async with cursor.copy(f"COPY {table} TO STDOUT") as outgoing:
            async for block in outgoing:
                size += len(block)
    assert size == sum(len(f"name {number}\n") for number in range(1000))
