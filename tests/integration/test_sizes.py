"""Results and COPYs of any size pass in bounded memory, also when a client stops reading."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.support import Installation, Proxy, wait_until

MEBIBYTE = 2**20
# The limit for 2 GB is 150 MB in all; what passes here is more than that by itself.
LIMIT = 150 * MEBIBYTE
SIZE = 200 * MEBIBYTE


@contextmanager
def _bounded(proxy: Proxy) -> Iterator[None]:
    """Watch the proxy's resident memory meanwhile and expect it below the limit."""
    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        ended = False
        while not ended:
            ended = done.wait(0.02)
            most = max(most, proxy.resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    assert 0 < most < LIMIT, f"{most / MEBIBYTE:.0f} MiB"


def test_a_big_result_of_small_rows(proxy: Proxy, make_key: MakeKey) -> None:
    length = 2000
    rows = SIZE // length
    with _bounded(proxy), proxy.login(*make_key()).connect() as connection, connection.cursor() as cursor:
        received = 0
        for (value,) in cursor.stream(
            f"SELECT repeat('x', {length}) FROM generate_series(1, {rows})", size=100
        ):
            received += len(value)
    assert received == rows * length


@pytest.mark.long
def test_one_row_larger_than_the_limit(proxy: Proxy, make_key: MakeKey) -> None:
    with _bounded(proxy), proxy.login(*make_key()).connect() as connection:
        row = connection.execute("SELECT repeat('x', %s)", (SIZE,)).fetchone()
    assert row is not None and len(row[0]) == SIZE


def test_a_big_copy_out(proxy: Proxy, make_key: MakeKey) -> None:
    query = f"COPY (SELECT repeat('x', 10000) FROM generate_series(1, {SIZE // 10000})) TO STDOUT"
    login = proxy.login(*make_key())
    with (
        _bounded(proxy),
        login.connect() as connection,
        connection.cursor() as cursor,
        cursor.copy(query) as copy,
    ):
        received = sum(len(block) for block in copy)
    assert received == SIZE // 10000 * 10001


@pytest.mark.long
def test_a_big_copy_in(
    proxy: Proxy, make_key: MakeKey, make_table: MakeTable, installation: Installation
) -> None:
    table = make_table("value text STORAGE EXTERNAL")
    line = b"y" * 100_000 + b"\n"
    lines = SIZE // len(line)
    with _bounded(proxy), proxy.login(*make_key()).connect() as connection, connection.cursor() as cursor:
        with cursor.copy(f"COPY {table} FROM STDIN") as copy:
            for _ in range(lines):
                copy.write(line)
        assert cursor.rowcount == lines


def test_a_parameter_larger_than_what_is_parsed(proxy: Proxy, make_key: MakeKey) -> None:
    with proxy.login(*make_key()).connect() as connection:
        value = "ä" * (20 * MEBIBYTE)
        assert connection.execute("SELECT length(%s)", (value,)).fetchone() == (len(value),)
        statement = "SELECT length('" + "x" * (20 * MEBIBYTE) + "')"
        assert connection.execute(statement.encode()).fetchone() == (20 * MEBIBYTE,)


def test_clients_that_stop_reading_hold_up_nobody_and_fill_no_memory(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    login = proxy.login(*make_key())
    # As many as the readonly pool has connections, less one for the others.
    stalled = [login.connect() for _ in range(4)]
    query = b"SELECT repeat('x', 1000) FROM generate_series(1, 1000000)"
    with _bounded(proxy):
        for connection in stalled:
            connection.pgconn.send_query(query)
            connection.pgconn.flush()
        with login.connect() as reading:
            for _ in range(200):
                assert reading.execute("SELECT 1").fetchone() == (1,)
    for connection in stalled:
        connection.close()
    with installation.superuser(installation.cluster.replicas[0]).connect() as direct:
        sending = (
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app_ro' AND wait_event = 'ClientWrite'"
        )
        wait_until(lambda: direct.execute(sending).fetchone() == (0,), message="the servers stop sending")


@pytest.mark.parametrize("number", [1, 64])
def test_many_statements_in_one_message(number: int, proxy: Proxy, make_key: MakeKey) -> None:
    with proxy.login(*make_key()).connect() as connection:
        cursor = connection.execute("; ".join(["SELECT generate_series(1, 1000)"] * number))
        sets = 1
        while cursor.nextset():
            sets += 1
        assert sets == number
