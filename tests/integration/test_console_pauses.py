"""PAUSE and RESUME on the console of a real proxy: what they do to clients at work, and to those who come."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.drills.stage import staged
from tests.integration.conftest import MakeKey, MakeTable, StartProxy
from tests.integration.consoles import console, in_thread, of_app, pools_of, show
from tests.integration.support import Installation, Login, Proxy, wait_until


@pytest.mark.long
def test_under_load_a_pause_stops_everything_and_no_statement_fails(
    start_proxy: StartProxy, make_key: MakeKey, make_table: MakeTable, installation: Installation
) -> None:
    # A statement that waits for the end of the pause doesn't run into acquire_timeout.
    proxy = start_proxy({"databases": {"app": {"pool_defaults": {"acquire_timeout": "500ms"}}}})
    operator = proxy.login(*make_key(["admin"]))
    application = proxy.login(*make_key())
    table = make_table("id integer PRIMARY KEY, n integer", "SELECT i, 0 FROM generate_series(1, 8) i")
    script = (
        f"\\set id random(1, 8)\nSELECT n FROM {table} WHERE id = :id;\n"
        f"BEGIN;\nUPDATE {table} SET n = n + 1 WHERE id = :id;\nSELECT 1;\nCOMMIT;\n"
    )

    def pgbench() -> None:
        done = application.run(
            "pgbench", "-n", "-c", "4", "-T", "8", "-f", "/dev/stdin", script=script, timeout=60.0
        )
        assert done.returncode == 0, done.stderr
        assert "number of failed transactions: 0 " in done.stdout

    with in_thread(pgbench), console(operator).connect(row_factory=dict_row) as connection:

        def transactions() -> int:
            row = connection.execute("SHOW STATS_TOTALS").fetchall()[0]
            return int(row["xact_count"])

        wait_until(lambda: transactions() > 100)
        connection.execute("PAUSE")
        assert connection.execute("SHOW SERVERS").fetchall() == []
        paused_at = transactions()
        waiting = wait_until(lambda: of_pools(connection, "cl_waiting") == 4)
        assert waiting
        wait_until(lambda: of_pools(connection, "maxwait_us") + of_pools(connection, "maxwait") * 1e6 > 1e6)
        assert transactions() == paused_at
        assert connection.execute("SHOW STATE").fetchall()[1] == {"key": "paused", "value": "yes"}
        database = connection.execute("SHOW DATABASES").fetchall()[0]
        assert (database["paused"], database["current_connections"]) == (1, 0)
        connection.execute("RESUME")
        wait_until(lambda: transactions() > paused_at + 50)
        assert of_pools(connection, "cl_waiting") < 4
    with installation.superuser().connect() as primary:
        (total,) = primary.execute(f"SELECT sum(n) FROM {table}").fetchone() or (0,)
    assert total > 100


def of_pools(connection: psycopg.Connection[Any], column: str) -> int:
    return sum(int(row[column]) for row in connection.execute("SHOW POOLS").fetchall())


def test_a_pause_waits_for_open_transactions_and_a_cancel_takes_it_back(
    own: Proxy, operator: Login, application: Login
) -> None:
    with application.connect(autocommit=False) as busy, console(operator).connect() as connection:
        busy.execute("SELECT pg_backend_pid()")

        def cancelled() -> None:
            with pytest.raises(psycopg.errors.QueryCanceled):
                connection.execute("PAUSE")

        with in_thread(cancelled):
            wait_until(lambda: of_app(operator, "DATABASES")["paused"] == 1)
            assert busy.execute("SELECT 2").fetchone() == (2,)
            connection.cancel()
        assert of_app(operator, "DATABASES")["paused"] == 0
        with in_thread(lambda: connection.execute("PAUSE")) as pausing:
            wait_until(lambda: of_app(operator, "DATABASES")["paused"] == 1)
            assert pausing.is_alive()
            busy.commit()
            pausing.join(10.0)
            assert not pausing.is_alive()
        connection.execute("RESUME")
        assert busy.execute("SELECT 3").fetchone() == (3,)


def test_a_statement_that_waits_for_the_end_of_a_pause_can_be_cancelled(
    own: Proxy, operator: Login, application: Login
) -> None:
    with application.connect() as connection, console(operator).connect() as commands:
        commands.execute("PAUSE app")

        def cancelled() -> None:
            with pytest.raises(psycopg.errors.QueryCanceled):
                connection.execute("SELECT 1")

        with in_thread(cancelled):
            wait_until(lambda: any(row["state"] == "waiting" for row in show(operator, "CLIENTS")))
            connection.cancel()
        commands.execute("RESUME app")
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_logins_wait_for_the_end_of_a_pause(own: Proxy, operator: Login, application: Login) -> None:
    with console(operator).connect() as commands:
        commands.execute("PAUSE")
        # Parameters that no server has seen yet: they are tried on one at the login.
        with in_thread(lambda: application.connect(options="-c work_mem=5MB").close()) as entering:
            wait_until(lambda: show(operator, "LISTS")[7]["items"] > 0)
            entering.join(0.5)
            assert entering.is_alive()
            commands.execute("RESUME")


def test_what_is_not_paused_is_not_resumed(own: Proxy, operator: Login) -> None:
    with console(operator).connect() as connection:
        for command in ("RESUME", "RESUME app"):
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
                connection.execute(command)
        with pytest.raises(psycopg.errors.InvalidCatalogName):
            connection.execute("PAUSE elsewhere")


@pytest.mark.long
def test_behind_a_pause_the_database_is_restarted_and_no_client_sees_it() -> None:
    tables = (
        "CREATE TABLE public.notes (n integer)",
        "GRANT SELECT, INSERT ON public.notes TO sluice_readwrite",
    )
    with staged(1, tables) as stage:
        operator = stage.proxy.login(*stage.installation.generate_key("operator@example.com", ["admin"]))
        (application,) = stage.logins(1)
        done = threading.Event()
        written = 0

        def write() -> None:
            nonlocal written
            with application.connect() as connection:
                while not done.is_set():
                    connection.execute("INSERT INTO notes VALUES (1)")
                    written += 1

        with console(operator).connect() as commands, in_thread(write):
            try:
                wait_until(lambda: written > 20)
                commands.execute("PAUSE")
                # The answer to the last one may still be on its way to its client.
                time.sleep(0.3)
                before = written
                stage.cluster.primary.stop()
                stage.cluster.primary.start()
                assert written == before
                commands.execute("RESUME")
                wait_until(lambda: written > before + 20)
            finally:
                done.set()
        with stage.installation.superuser().connect() as primary:
            assert primary.execute("SELECT count(*) FROM notes").fetchone() == (written,)
        assert stage.tracebacks() == []


def test_sigterm_does_not_wait_for_the_end_of_a_pause(
    own: Proxy, operator: Login, application: Login
) -> None:
    with application.connect() as connection, console(operator).connect() as commands:
        commands.execute("PAUSE")

        def refused() -> None:
            with pytest.raises(psycopg.errors.AdminShutdown):
                connection.execute("SELECT 1")

        with in_thread(refused):
            wait_until(lambda: pools_of(operator, "cl_waiting") == 1)
            began = time.monotonic()
            own.stop()
            assert time.monotonic() - began < 10.0
