"""Records into the real table: once, whatever became of earlier attempts, and into partitions made for them."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from proxy.config.model import HostTls
from proxy.observe.batches import Batch
from proxy.observe.record import AccessBuffer, session_part
from proxy.observe.rows import copy_payload, count
from proxy.transport.tls import ServerTls
from proxy.transport.way import Way
from proxy.upstream.access_table import AccessTable
from proxy.upstream.control import Control
from tests.integration.support import DATABASE, Installation

DAY = 86_400.0


@pytest.fixture
async def table(installation: Installation) -> AsyncIterator[AccessTable]:
    server = installation.cluster.primary
    control = Control(
        Way("127.0.0.1", server.port, ServerTls(HostTls())),
        DATABASE,
        "sluice_control",
        installation.passwords["sluice_control"],
        5.0,
    )
    yield AccessTable(lambda: control)
    await control.close()


def rows_of(key: str, *times: float) -> bytes:
    buffer = AccessBuffer(os.urandom(10))
    for at in times:
        buffer.event("admin", at, session_part(key, "", "", "", ""))
    return buffer.take()


async def write(table: AccessTable, rows: bytes, again: bool = False) -> None:
    batch = Batch(rows, count(rows))
    await table.write(copy_payload(batch.rows), again)


def stored(installation: Installation, key: str) -> int:
    with installation.superuser().connect() as connection:
        row = connection.execute(
            "SELECT count(*) FROM sluice.api_access_logs WHERE key_id = %s", (key,)
        ).fetchone()
    assert row is not None
    return int(row[0])


def query(installation: Installation, statement: str) -> Any:
    with installation.superuser().connect() as connection:
        row = connection.execute(statement).fetchone()
    return row[0] if row is not None else None


async def test_what_may_be_there_is_stored_once(table: AccessTable, installation: Installation) -> None:
    key, now = uuid4().hex, time.time()
    first, second = rows_of(key, now, now), rows_of(key, now)
    await write(table, first)
    await write(table, first, again=True)
    await write(table, first + second, again=True)
    assert stored(installation, key) == 3


async def test_what_comes_twice_as_new_is_refused(table: AccessTable) -> None:
    rows = rows_of(uuid4().hex, time.time())
    await write(table, rows)
    with pytest.raises(asyncpg.UniqueViolationError):
        await write(table, rows)


async def test_days_that_have_no_partition_get_one(table: AccessTable, installation: Installation) -> None:
    """The oldest partition is of ten days ago, the one of five days ago is missing: the proxies were down then."""
    key, now = uuid4().hex, time.time()
    installation.execute("SELECT sluice.ensure_partitions(7, 10)")
    gap = query(installation, "SELECT to_char((now() AT TIME ZONE 'UTC')::date - 5, 'YYYYMMDD')")
    installation.execute(f"DROP TABLE sluice.api_access_logs_{gap}")
    rows = rows_of(key, now - 5 * DAY, now)
    with pytest.raises(asyncpg.CheckViolationError):
        await write(table, rows)
    await write(table, rows, again=True)
    assert stored(installation, key) == 2
    assert query(installation, f"SELECT count(*) FROM sluice.api_access_logs_{gap}") == 1


async def test_rows_older_than_what_is_kept_are_dropped_and_said(
    table: AccessTable, installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    key, now = uuid4().hex, time.time()
    partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'sluice.api_access_logs'::regclass"
    before = query(installation, partitions)
    await write(table, rows_of(key, now - 200 * DAY, now), again=True)
    assert stored(installation, key) == 1 and table.outlived == 1
    assert "1 records from before" in caplog.text
    assert query(installation, partitions) == before
    await write(table, rows_of(key, now - 200 * DAY), again=True)
    assert stored(installation, key) == 1 and table.outlived == 2
