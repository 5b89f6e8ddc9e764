"""What a client is told when its server connection is killed, in each state that it may be in."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.hostile_server import HostileServer
from tests.integration.raw import Raw
from tests.integration.support import DATABASE, Installation, Login, Proxy, wait_until
from tests.session.frontend import (
    FLUSH,
    SYNC,
    bind,
    copy_data,
    execute,
    fields,
    kinds,
    message,
    parse,
    query,
    split,
)


@pytest.fixture
def login(proxy: Proxy, make_key: MakeKey) -> Login:
    return proxy.login(*make_key())


def test_a_read_whose_server_is_killed_runs_again(
    login: Login, installation: Installation, make_table: MakeTable
) -> None:
    table = make_table("id integer", "VALUES (1)")
    with login.connect() as connection, installation.superuser().connect(autocommit=False) as blocker:
        blocker.execute(f"LOCK TABLE {table}")
        connection.pgconn.send_query(f"/* sluice: pool=primary */ SELECT id FROM {table}".encode())
        _kill(installation, "wait_event_type = 'Lock'")
        blocker.rollback()
        result = connection.pgconn.get_result()
        assert result is not None and result.get_value(0, 0) == b"1", result
        assert connection.pgconn.get_result() is None
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_write_whose_server_is_killed_ends_the_session(
    login: Login, installation: Installation, make_table: MakeTable
) -> None:
    table = make_table("id integer")
    with login.connect() as connection:
        told = _told(connection, f"INSERT INTO {table} SELECT 1 FROM pg_sleep(30)", installation)
        assert told.sqlstate == "57P01"
        assert connection.broken
    with installation.superuser().connect() as direct:
        assert direct.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_a_transaction_whose_server_is_killed_ends_the_session(
    login: Login, installation: Installation
) -> None:
    with login.connect() as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT 1")
        assert _told(connection, "SELECT pg_sleep(30)", installation).sqlstate == "57P01"


@pytest.mark.long
def test_an_idle_transaction_is_ended_and_rolled_back(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, make_table: MakeTable
) -> None:
    table = make_table("id integer")
    running = start_proxy({"databases": {"app": {"timeouts": {"idle_in_transaction": "300ms"}}}})
    for statement in ("SELECT 1", f"INSERT INTO {table} VALUES (1)", ""):
        with running.login(*make_key()).connect() as connection:
            connection.execute("BEGIN")
            if statement:
                connection.execute(statement)
            assert select.select([connection.pgconn.socket], [], [], 15.0)[0], "the proxy speaks first"
            with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
                connection.execute("SELECT 1")
    with running.installation.superuser().connect() as direct:
        assert direct.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


@pytest.mark.long
def test_the_query_timeout_holds_for_each_kind_of_wait(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, make_table: MakeTable
) -> None:
    table = make_table("id integer", "VALUES (1)")
    running = start_proxy({"databases": {"app": {"timeouts": {"query": "500ms"}}}})
    with (
        running.login(*make_key()).connect() as connection,
        running.installation.superuser().connect(autocommit=False) as blocker,
    ):
        with pytest.raises(psycopg.errors.QueryCanceled) as told:
            connection.execute("SELECT pg_sleep(30)")
        assert told.value.diag.message_detail == "QUERY_TIMEOUT: query_timeout=0.5s"
        blocker.execute(f"LOCK TABLE {table}")
        for arguments in ((), (1,)):
            # Parse already waits for the lock.
            with pytest.raises(psycopg.errors.QueryCanceled) as told:
                connection.execute(f"UPDATE {table} SET id = {'%s' if arguments else '1'}", arguments)
            assert told.value.diag.message_detail == "QUERY_TIMEOUT: query_timeout=0.5s"
        blocker.rollback()
        assert connection.execute(f"SELECT id FROM {table}").fetchone() == (1,)


def _told(
    connection: psycopg.Connection[Any], statement: str, installation: Installation
) -> psycopg.OperationalError:
    killer = threading.Thread(target=_kill, args=(installation, "wait_event = 'PgSleep'"))
    killer.start()
    with pytest.raises(psycopg.OperationalError) as told:
        connection.execute(statement)
    killer.join(30)
    return told.value


def _kill(installation: Installation, condition: str) -> None:
    """Terminate the pools' backends for which `condition` holds, as soon as there is one."""
    sql = (
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
        f" WHERE usename IN ('app_rw', 'app_ro') AND {condition}"
    )

    def killed() -> bool:
        for server in installation.cluster.servers:
            with installation.superuser(server).connect() as direct:
                row = direct.execute(sql).fetchone()
            if row is not None and row[0] > 0:
                return True
        return False

    wait_until(killed, message=condition)


# -- at each point of a session's work

# What is sent, what is answered to it, and the condition on pg_stat_activity at which the server is killed then.
_POINTS = {
    "before anything came": (
        query("INSERT INTO {t} SELECT 1 FROM pg_sleep(30)"),
        "",
        "wait_event = 'PgSleep'",
    ),
    "extended, before anything came": (
        parse("", "INSERT INTO {t} SELECT 1 FROM pg_sleep(30)") + bind() + execute() + SYNC,
        "",
        "wait_event = 'PgSleep'",
    ),
    "after rows": (
        query("SELECT repeat('x', 20000), NULL UNION ALL SELECT 'y', pg_sleep(30)::text"),
        "T",
        "wait_event = 'PgSleep'",
    ),
    "pipelined": (
        query("INSERT INTO {t} VALUES (2)") + query("SELECT pg_sleep(30)") + query("SELECT 1"),
        "C ZI",
        "wait_event = 'PgSleep'",
    ),
    "in COPY in": (query("COPY {t} FROM STDIN") + copy_data(b"1\n"), "G", "true"),
    "in COPY in, extended": (
        parse("", "COPY {t} FROM STDIN") + bind() + execute() + FLUSH + copy_data(b"1\n"),
        "1 2 G",
        "true",
    ),
    "in COPY out": (
        query("COPY (SELECT repeat('x', 20000) UNION ALL SELECT pg_sleep(30)::text) TO STDOUT"),
        "H",
        "wait_event = 'PgSleep'",
    ),
    "in a transaction": (
        query("BEGIN") + query("INSERT INTO {t} VALUES (1)"),
        "C ZT C ZT",
        "true",
    ),
    "in a failed transaction": (
        query("BEGIN") + query("INSERT INTO {t} VALUES (1)") + query("SELECT 1/0"),
        "C ZT C ZT E:22012 ZE",
        "true",
    ),
    "behind a Flush": (
        parse("", "INSERT INTO {t} VALUES (1)") + bind() + execute() + FLUSH,
        "1 2 C",
        "true",
    ),
    "pinned": (query("LISTEN something"), "C ZI", "true"),
}


@pytest.fixture
def relay(installation: Installation) -> Iterator[HostileServer]:
    server = HostileServer(installation.cluster.primary.port)
    yield server
    server.close()


@pytest.fixture
def relayed(relay: HostileServer, start_proxy: Callable[..., Proxy]) -> Proxy:
    hosts = [{"name": "far", "host": "127.0.0.1", "port": relay.port, "role": "primary"}]
    return start_proxy({"databases": {DATABASE: {"hosts": hosts}}})


@pytest.mark.parametrize("way", ["terminated", "cut off"])
@pytest.mark.long
def test_what_a_client_is_told_at_each_point(
    relayed: Proxy,
    relay: HostileServer,
    make_key: MakeKey,
    make_table: MakeTable,
    installation: Installation,
    way: str,
) -> None:
    table = make_table("id integer")
    key = make_key()
    for point, (sent, answered, condition) in _POINTS.items():
        with Raw(relayed.port).log_in(key) as client:
            client.send(_about(sent, table))
            before = b""
            for expected in answered.split():
                before += (one := client.message())
                assert kinds(one) == expected, point
            if way == "terminated":
                _kill(installation, condition)
            else:
                wait_until(lambda: _found(installation, condition), message=point)  # noqa: B023
                relay.cut()
            rest = client.rest()
            assert b"Z\0\0\0\5" not in rest, point
            if way == "terminated":
                assert kinds(split(rest)[-1]) == "FATAL:57P01", point
                assert rest.count(b"VFATAL") == 1, point
            elif rest[-1:] != b"x":
                last = split(rest)[-1]
                assert kinds(last) == "FATAL:08006", point
                assert f"127.0.0.1:{relay.port}" in fields(last)["M"], point
            if way == "cut off" and "PgSleep" in condition:
                # PostgreSQL finds out only when it has something to say.
                _kill(installation, condition)
        # A connection that was just being opened is cut too, and told to who waited for it.
        wait_until(lambda: _served(relayed, key), message=point)
    with installation.superuser().connect() as direct:
        wait_until(
            lambda: (
                not _found(installation, "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'transactionid')")
            )
        )
        assert direct.execute(f"SELECT id FROM {table}").fetchall() == [(2,)]
    relayed.stop()


def test_a_transaction_that_is_only_deferred_does_not_notice_a_lost_server(
    relayed: Proxy, relay: HostileServer, make_key: MakeKey
) -> None:
    with Raw(relayed.port).log_in(make_key()) as client:
        client.ask(query("SELECT 1"))
        assert kinds(b"".join(client.ask(query("BEGIN")))) == "C ZT"
        relay.cut()
        # The pools' least: 2 primary, and 1 each of three others; so the losses have been noticed.
        wait_until(lambda: relay.connections >= 5)
        assert kinds(b"".join(client.ask(query("SELECT 1")))) == "T D C ZT"
        assert kinds(b"".join(client.ask(query("COMMIT")))) == "C ZI"
    relayed.stop()


@pytest.mark.parametrize("way", ["terminated", "cut off"])
def test_a_session_with_a_connection_of_its_own_is_told_that_it_is_lost(
    start_proxy: Callable[..., Proxy],
    relay: HostileServer,
    make_key: MakeKey,
    installation: Installation,
    way: str,
) -> None:
    hosts = [{"name": "far", "host": "127.0.0.1", "port": relay.port, "role": "primary"}]
    running = start_proxy({"databases": {DATABASE: {"hosts": hosts, "pool_mode": "session"}}})
    with Raw(running.port).log_in(make_key()) as client:
        client.ask(query("SELECT 'mine'"))
        if way == "terminated":
            _kill(installation, "true")
        else:
            relay.cut()
        assert kinds(client.rest()) == ("FATAL:57P01" if way == "terminated" else "FATAL:08006")
    running.stop()


def _served(running: Proxy, key: tuple[str, str]) -> bool:
    """Tell whether a client can log in, which takes a server, and write."""
    with suppress(AssertionError), Raw(running.port).log_in(key) as client:
        return kinds(b"".join(client.ask(query("SELECT pg_current_xact_id()")))) == "T D C ZI"
    return False


def _about(sent: bytes, table: str) -> bytes:
    """Put `table` in the place of {t} in each message."""
    return b"".join(message(each[:1], each[5:].replace(b"{t}", table.encode())) for each in split(sent))


def _found(installation: Installation, condition: str) -> bool:
    sql = f"SELECT count(*) FROM pg_stat_activity WHERE usename IN ('app_rw', 'app_ro') AND {condition}"
    with installation.superuser().connect() as direct:
        row = direct.execute(sql).fetchone()
    return row is not None and row[0] > 0
