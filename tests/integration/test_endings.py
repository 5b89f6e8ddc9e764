"""How things end: SIGTERM drains, a crash leaves nothing behind, a lost server is told."""

from __future__ import annotations

import select
import signal
from collections.abc import Callable

import psycopg
import pytest

from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.support import Installation, Proxy, wait_until


def _transactions(installation: Installation) -> int:
    """Count the transactions that pool logins have open on the primary."""
    with installation.superuser().connect() as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
            " WHERE a.usename LIKE 'app%' AND l.locktype = 'transactionid'"
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_sigterm_lets_open_transactions_finish_and_closes_idle_sessions(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, make_table: MakeTable
) -> None:
    table = make_table("id integer")
    draining = start_proxy()
    login = draining.login(*make_key())
    with login.connect() as idle, login.connect() as working:
        working.execute("BEGIN")
        working.execute(f"INSERT INTO {table} VALUES (1)")
        idle.execute("SELECT 1")
        draining.process.send_signal(signal.SIGTERM)
        # Asking meanwhile could cross the FATAL, and libpq then tells nothing but the end of the connection.
        assert select.select([idle.fileno()], [], [], 15)[0], "the idle session is closed"
        with pytest.raises(psycopg.errors.AdminShutdown) as told:
            idle.execute("SELECT 1")
        assert told.value.sqlstate == "57P01"
        with pytest.raises(psycopg.OperationalError):
            login.connect(connect_timeout=2)
        working.execute(f"INSERT INTO {table} VALUES (2)")
        working.execute("COMMIT")
    draining.stop()
    with draining.installation.superuser().connect() as connection:
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (2,)


@pytest.mark.long
def test_a_transaction_that_doesn_t_end_is_cut_off_at_the_drain_timeout(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, installation: Installation
) -> None:
    draining = start_proxy({"listen": {"drain_timeout": "500ms"}})
    with draining.login(*make_key()).connect() as working:
        working.execute("BEGIN")
        working.execute("SELECT pg_current_xact_id()")
        draining.stop(timeout=10)
        with pytest.raises(psycopg.OperationalError):
            working.execute("COMMIT")
    wait_until(lambda: _transactions(installation) == 0)


def test_a_crash_of_the_proxy_leaves_no_transaction(
    start_proxy: Callable[..., Proxy], make_key: MakeKey, make_table: MakeTable, installation: Installation
) -> None:
    table = make_table("id integer", "VALUES (1)")
    crashing = start_proxy()
    login = crashing.login(*make_key())
    connections = [login.connect() for _ in range(4)]
    for connection in connections[:2]:
        connection.execute("BEGIN")
        connection.execute(f"INSERT INTO {table} VALUES (2)")
    connections[2].pgconn.send_query(f"COPY {table} FROM STDIN".encode())
    connections[3].execute("LISTEN something")
    wait_until(lambda: _transactions(installation) >= 2)
    crashing.kill()
    wait_until(lambda: _transactions(installation) == 0, message="PostgreSQL rolls back")
    for connection in connections:
        connection.close()
    with installation.superuser().connect() as direct:
        direct.execute("SET lock_timeout = '5s'")
        direct.execute(f"ALTER TABLE {table} ADD done boolean")
        assert direct.execute(f"SELECT id FROM {table}").fetchall() == [(1,)]


def test_a_proxy_starts_again_on_its_port_at_once(
    start_proxy: Callable[..., Proxy], make_key: MakeKey
) -> None:
    again = start_proxy()
    login = again.login(*make_key())
    with login.connect() as connection:
        connection.execute("SELECT 1")
        again.kill()
    again.start()
    with login.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_session_that_holds_nothing_does_not_notice_a_lost_server_connection(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    with proxy.login(*make_key()).connect() as connection:
        connection.execute("SELECT pg_current_xact_id()")
        connection.execute("SELECT 1")
        for server in installation.cluster.servers:
            with installation.superuser(server).connect() as direct:
                direct.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE usename IN ('app_rw', 'app_ro')"
                )
        for _ in range(5):
            assert connection.execute("SELECT 1").fetchone() == (1,)
            connection.execute("SELECT pg_current_xact_id()")


def test_a_server_lost_in_a_transaction_ends_the_session(
    proxy: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    with proxy.login(*make_key()).connect() as connection:
        connection.execute("BEGIN")
        row = connection.execute("SELECT pg_backend_pid(), pg_current_xact_id()").fetchone()
        assert row is not None
        with installation.superuser().connect() as direct:
            direct.execute("SELECT pg_terminate_backend(%s, 5000)", (row[0],))
        with pytest.raises(psycopg.OperationalError) as told:
            connection.execute("SELECT 1")
        assert told.value.sqlstate == "57P01"
        assert connection.broken


def test_terminate_takes_effect_after_what_stands_before_it(
    proxy: Proxy, make_key: MakeKey, make_table: MakeTable, installation: Installation
) -> None:
    table = make_table("id integer")
    connection = proxy.login(*make_key()).connect()
    connection.pgconn.send_query(f"INSERT INTO {table} SELECT 1 FROM pg_sleep(0.2)".encode())
    connection.pgconn.flush()
    connection.close()
    with installation.superuser().connect() as direct:
        wait_until(lambda: direct.execute(f"SELECT count(*) FROM {table}").fetchone() == (1,))
