"""What a client is told when its server connection is killed, in each state that it may be in."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.support import Installation, Login, Proxy, wait_until


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
        _names_the_host(told)
        assert connection.broken
    with installation.superuser().connect() as direct:
        assert direct.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_a_transaction_whose_server_is_killed_ends_the_session(
    login: Login, installation: Installation
) -> None:
    with login.connect() as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT 1")
        _names_the_host(_told(connection, "SELECT pg_sleep(30)", installation))


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


def _names_the_host(told: BaseException) -> None:
    assert isinstance(told, psycopg.OperationalError)
    assert told.sqlstate == "08006"
    assert "connection to 127.0.0.1:" in str(told) and "administrator command" in str(told)


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
