"""Pools beside each other: heavy work in one keeps nobody waiting in another; who came first is served first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import psycopg
import pytest

from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.support import Login, Proxy

SMALL = {"min": 0, "max": 1, "acquire_timeout": "1s"}


@pytest.fixture
def login(start_proxy: Callable[..., Proxy], make_key: MakeKey) -> Login:
    pools = {"background": SMALL, "priority": SMALL, "primary": SMALL}
    return start_proxy({"databases": {"app": {"pools": pools}}}).login(*make_key())


async def in_pool(login: Login, pool: str) -> psycopg.AsyncConnection[tuple[object, ...]]:
    return await login.aconnect(options=f"-c sluice.pool={pool}")


async def test_heavy_work_in_the_background_keeps_nobody_else_waiting(
    login: Login, make_table: MakeTable
) -> None:
    table = make_table("id integer")
    heavy = [await in_pool(login, "background") for _ in range(3)]
    critical = [await in_pool(login, "priority"), await in_pool(login, "primary")]
    tasks = [asyncio.ensure_future(each.execute("SELECT pg_sleep(0.8)")) for each in heavy]
    await asyncio.sleep(0.1)
    began = time.monotonic()
    for connection in critical:
        await connection.execute(f"INSERT INTO {table} VALUES (1)")
    assert time.monotonic() - began < 0.5
    done = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [each for each in done if isinstance(each, psycopg.errors.TooManyConnections)]
    assert len(done) - len(refused) >= 1 and len(refused) >= 1
    for each in refused:
        assert each.diag.message_detail is not None
        assert each.diag.message_detail.startswith("POOL_EXHAUSTED: pool=background host=primary size=1")
    for connection in (*heavy, *critical):
        await connection.close()


async def test_who_waits_longest_is_served_first(login: Login, make_table: MakeTable) -> None:
    table = make_table("at timestamptz DEFAULT clock_timestamp(), who integer")
    holder = await in_pool(login, "background")
    waiting = [await in_pool(login, "background") for _ in range(5)]
    await holder.execute("BEGIN")
    await holder.execute(f"INSERT INTO {table} (who) VALUES (-1)")
    tasks = []
    for number, connection in enumerate(waiting):
        tasks.append(
            asyncio.ensure_future(connection.execute(f"INSERT INTO {table} (who) VALUES ({number})"))
        )
        await asyncio.sleep(0.02)
    await holder.execute("COMMIT")
    await asyncio.gather(*tasks)
    found = await (await holder.execute(f"SELECT who FROM {table} ORDER BY at")).fetchall()
    assert [who for (who,) in found] == [-1, 0, 1, 2, 3, 4]
    for connection in (holder, *waiting):
        await connection.close()
