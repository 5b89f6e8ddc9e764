"""What PostgreSQL makes of encoded access records: the COPY, its refusals, and what is tried again."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from proxy.embedded import Cluster
from proxy.observe.access_log import Sink
from proxy.observe.batches import MemoryBacklog
from proxy.observe.record import AccessBuffer, pool_part, route_part, session_part
from proxy.observe.rows import COLUMNS, copy_payload, json_lines
from proxy.query.cache import IntentCache
from proxy.query.functions import FunctionCatalog
from tests.integration.support import DATABASE, Installation
from tests.observe.decoder import TABLE, decode

# 2025-11-20 23:06:40.125 UTC
AT = 1_763_680_000.125
HOSTILE = "a\0b\n\x1b[31m\u202e\ud800\\.\t'\"☃"


@pytest.fixture
async def table(cluster: Cluster) -> AsyncIterator[asyncpg.Connection[Any]]:
    """Give a connection to a database with the partitioned table, one day of it, as a session's own."""
    async for connection in database_of(cluster, "UTF8"):
        yield connection


@pytest.fixture
async def latin1(cluster: Cluster) -> AsyncIterator[asyncpg.Connection[Any]]:
    """Give the same in a database that lacks most characters."""
    async for connection in database_of(cluster, "LATIN1"):
        yield connection


async def database_of(cluster: Cluster, encoding: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    name = f"access_log_{encoding.lower()}"
    admin = await asyncpg.connect(cluster.primary.dsn())
    await admin.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    connection = await asyncpg.connect(cluster.primary.dsn(name))
    await connection.execute(
        f"CREATE TABLE logs ({TABLE}, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);"
        "CREATE TABLE one_day PARTITION OF logs FOR VALUES FROM ('2025-11-20Z') TO ('2025-11-21Z')"
    )
    yield connection
    await connection.close()
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def copy(connection: asyncpg.Connection[Any], rows: bytes) -> None:
    # asyncpg takes bytes for a path, and reads a file in another thread.
    async def source() -> AsyncIterator[bytes]:
        for piece in copy_payload(rows):
            yield bytes(piece)

    await connection.copy_to_table("logs", source=source(), format="binary")


async def stored(connection: asyncpg.Connection[Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch("SELECT * FROM logs ORDER BY id")]


def every_kind_of_row() -> bytes:
    intents = IntentCache(FunctionCatalog.builtin(), 16384)
    buffer = AccessBuffer(os.urandom(10))
    numbers = (0, 1, 2**63 - 1, -1, 5, 7)
    for address in ("192.0.2.7", "2001:db8::1", "::ffff:198.51.100.1", "fe80::1%eth0", ""):
        session = session_part("ctm_ab12cd34ef56", "ann@example.com", address, HOSTILE, "app")
        for sql in (
            b"SELECT abalance FROM accounts WHERE aid = 1",
            b"not SQL",
            b"",
            b"\xff" * 40,
            b"x" * 20_000,
        ):
            queued, first_byte, duration, number, bytes_in, bytes_out = numbers
            buffer.statement(
                session,
                pool_part("primary", "main"),
                route_part("primary", "parse error"),
                intents.lookup(sql),
                AT,
                queued,
                first_byte,
                duration,
                number,
                bytes_in,
                bytes_out,
                True,
                False,
                b"42601",
                b"",
                b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            )
    nobody = session_part("", "", "", "", "")
    for event in ("login", "login_failed", "denied", "revoked", "cancel", "admin"):
        buffer.event(event, AT, nobody, reason=HOSTILE * 100, statement=HOSTILE * 1000, code="SHUTTING_DOWN")
    return buffer.take()


async def test_postgresql_takes_every_kind_of_row(table: asyncpg.Connection[Any]) -> None:
    rows = every_kind_of_row()
    await copy(table, rows)
    expected = decode(rows)
    for row in expected:
        if row["client_addr"] is not None:
            row["client_addr"] = ipaddress.ip_interface(str(row["client_addr"]))
    found = await stored(table)
    for row in found:
        if row["client_addr"] is not None:
            row["client_addr"] = ipaddress.ip_interface(row["client_addr"])
    assert found == sorted(expected, key=lambda row: row["id"])


async def test_json_lines_say_what_postgresql_stored(table: asyncpg.Connection[Any]) -> None:
    rows = every_kind_of_row()
    await copy(table, rows)
    found = await table.fetch(
        "SELECT to_jsonb(logs) - 'at' || jsonb_build_object('at', at) FROM logs ORDER BY id"
    )
    lines = [json.loads(line) for line in json_lines(rows, 0, len(rows)).splitlines()]
    for line, (shown,) in zip(lines, found, strict=True):
        told = {name: value for name, value in json.loads(shown).items() if value is not None}
        told["at"] = told["at"].replace("+00:00", "Z")
        assert line == told


async def test_characters_that_the_database_lacks_are_escaped(latin1: asyncpg.Connection[Any]) -> None:
    buffer = AccessBuffer(os.urandom(10))
    session = session_part("key", "", "", "", "")
    for reason in ("plain", "naïve", "☃", "plain again"):
        buffer.event("admin", AT, session, reason=reason)
    sink = Sink("table", lambda batch: copy(latin1, batch.rows), MemoryBacklog(10**7), retry_delay=0.0)
    sink.start()
    sink.put(buffer.take(), 4)
    await sink.close(30)
    assert (sink.written, sink.refused, sink.dropped) == (4, 0, 0)
    assert [row["reason"] for row in await stored(latin1)] == ["plain", "naïve", "\\u2603", "plain again"]


async def test_the_bundled_table_has_these_columns(installation: Installation) -> None:
    connection = await asyncpg.connect(installation.cluster.primary.dsn(DATABASE))
    found = await connection.fetch(
        "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute"
        " WHERE attrelid = 'sluice.api_access_logs'::regclass AND attnum > 0 ORDER BY attnum"
    )
    await connection.close()
    spelled = {"timestamptz": "timestamp with time zone"}
    assert [tuple(row) for row in found] == [(name, spelled.get(kind, kind)) for name, kind in COLUMNS]
