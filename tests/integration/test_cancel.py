"""Cancel requests: they reach the statement that was meant, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import urllib.request
from typing import Any

import psycopg
import pytest

from tests.integration.conftest import MakeKey
from tests.integration.support import Installation, Login, Proxy, soon, wait_until


async def test_a_cancel_stops_the_statement_and_the_session_goes_on(
    writer: Login, installation: Installation
) -> None:
    async with await writer.aconnect() as connection:
        for statement in ("SELECT pg_sleep(30)", "SELECT pg_sleep(30), pg_current_xact_id()"):
            running = asyncio.create_task(connection.execute(statement))
            await _sleeping(installation)
            await connection.cancel_safe(timeout=10)
            with pytest.raises(psycopg.errors.QueryCanceled):
                await running
            assert await (await connection.execute("SELECT 1")).fetchone() == (1,)


async def test_a_cancel_inside_a_transaction_fails_it(writer: Login, installation: Installation) -> None:
    async with await writer.aconnect(autocommit=False) as connection:
        await connection.execute("SELECT pg_current_xact_id()")
        running = asyncio.create_task(connection.execute("SELECT pg_sleep(30)"))
        await _sleeping(installation)
        await connection.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            await running
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await connection.execute("SELECT 1")
        await connection.rollback()


def test_psql_cancels_at_an_interrupt(writer: Login, installation: Installation) -> None:
    with writer.psql_start("-At") as psql:
        try:
            assert psql.stdin is not None
            psql.stdin.write("SELECT 'begun';\nSELECT pg_sleep(30);\nSELECT 'goes on';\n\\q\n")
            psql.stdin.flush()
            # psql ends without a cancel request when it is interrupted between two statements.
            wait_until(lambda: sleepers(installation) == 1, message="the statement runs")
            psql.send_signal(signal.SIGINT)
            output, errors = psql.communicate(timeout=15)
        finally:
            psql.kill()
    assert output == "begun\n"
    assert "canceling statement due to user request" in errors


async def test_a_cancel_while_waiting_for_a_connection_is_answered(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    login = proxy.login(*make_key())
    pool = {"options": "-c sluice.pool=background"}
    holders = [await login.aconnect(autocommit=False, **pool) for _ in range(2)]
    for holder in holders:
        await holder.execute("SELECT pg_current_xact_id()")
    async with await login.aconnect(**pool) as waiting:
        running = asyncio.create_task(waiting.execute("SELECT pg_current_xact_id()"))
        await soon(lambda: _waiting(proxy, "background") == 1, message="the session waits for a connection")
        await waiting.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            await running
        for holder in holders:
            await holder.rollback()
            await holder.close()
        assert await (await waiting.execute("SELECT 1")).fetchone() == (1,)


async def test_a_wrong_cancel_key_is_closed_silently_and_cancels_nothing(
    writer: Login, proxy: Proxy, installation: Installation
) -> None:
    async with await writer.aconnect() as connection:
        running = asyncio.create_task(connection.execute("SELECT pg_sleep(30)"))
        await _sleeping(installation)
        for pid, key in ((connection.pgconn.backend_pid, 1), (1, 1), (0, 0)):
            assert await asyncio.to_thread(_cancel, proxy.port, pid, key) == b""
        await asyncio.wait([running], timeout=0.3)
        assert not running.done()
        await connection.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            await running


async def test_a_client_that_vanishes_has_its_statement_cancelled(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    connection = await proxy.login(*make_key()).aconnect()
    connection.pgconn.send_query(b"SELECT pg_sleep(300), pg_current_xact_id()")
    assert connection.pgconn.flush() == 0
    await _sleeping(installation)
    # Without Terminate: what stands before that would be completed.
    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
        line.shutdown(socket.SHUT_RDWR)
    await soon(lambda: sleepers(installation) == 0, message="the statement is cancelled")
    await connection.close()


async def _sleeping(installation: Installation) -> None:
    """Wait until a statement runs: a cancel request that comes before it has nothing to stop."""
    await soon(lambda: sleepers(installation) == 1, message="the statement runs")


def sleepers(installation: Installation) -> int:
    """Count the waits in pg_sleep on all servers; the pools' logins don't show their statements."""
    count = 0
    for server in installation.cluster.servers:
        with installation.superuser(server).connect() as connection:
            row: tuple[Any, ...] | None = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            ).fetchone()
        assert row is not None
        count += int(row[0])
    return count


def _waiting(proxy: Proxy, pool: str) -> int:
    """Count the sessions that wait for a connection of `pool`."""
    with urllib.request.urlopen(proxy.url("/health"), timeout=10) as answer:
        pools = json.load(answer)["pools"]
    return sum(each["waiting"] for each in pools if each["pool"] == pool)


def _cancel(port: int, pid: int, key: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(struct.pack("!IIII", 16, 80877102, pid & 0xFFFFFFFF, key))
        return client.recv(100)
