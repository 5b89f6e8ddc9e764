"""The admin console on a real proxy: psql and drivers, permissions, and what each command does to clients at work."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.rows import dict_row

from tests.drills.stage import staged
from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.support import Installation, Login, Proxy, wait_until

StartProxy = Callable[..., Proxy]


def console(login: Login, name: str = "pgsluice") -> Login:
    return replace(login, database=name)


def show(login: Login, subject: str) -> list[dict[str, Any]]:
    with console(login).connect(row_factory=dict_row) as connection:
        return connection.execute(f"SHOW {subject}").fetchall()


def of_app(login: Login, subject: str) -> dict[str, Any]:
    """Return the row of database `app`."""
    rows = show(login, subject)
    return next(row for row in rows if "app" in (row.get("database"), row.get("name")))


@pytest.fixture
def own(start_proxy: StartProxy) -> Proxy:
    """Give a proxy that a test may stop, pause and reconfigure."""
    return start_proxy()


@pytest.fixture
def operator(own: Proxy, make_key: MakeKey) -> Login:
    return own.login(*make_key(["admin"], "operator@example.com"))


@pytest.fixture
def application(own: Proxy, make_key: MakeKey) -> Login:
    return own.login(*make_key(["read:tasks", "write:tasks"], "application@example.com"))


@pytest.fixture(scope="session")
def observer(proxy: Proxy, make_key: MakeKey) -> Login:
    """Give the login of a monitoring system."""
    return proxy.login(*make_key(["read:metrics"], "observer@example.com"))


@contextmanager
def in_thread(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run `work` beside; its exception fails the test at the end."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    yield thread
    thread.join(30.0)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


# -- reading


@pytest.mark.parametrize("name", ["pgsluice", "pgbouncer"])
def test_psql_shows_pools_under_both_names_of_the_console(name: str, observer: Login) -> None:
    done = console(observer, name).run("psql", "-X", "-c", "SHOW POOLS")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [column.strip() for column in lines[0].split("|")][:4] == [
        "database",
        "user",
        "cl_active",
        "cl_waiting",
    ]
    assert any(line.split("|")[:2] == [" app       ", " app_ro    "] for line in lines)


def test_psql_shows_rows_as_records(observer: Login) -> None:
    done = console(observer).psql("\\x\nshow pools;\nSHOW state;\n")
    assert done.returncode == 0, done.stderr
    assert "-[ RECORD 1 ]" in done.stdout
    assert "cl_active_cancel_req  | 0" in done.stdout
    assert "suspended" in done.stdout


def test_psql_shows_help(observer: Login) -> None:
    done = console(observer).psql("SHOW HELP;")
    assert "Console usage" in done.stderr
    assert "PAUSE [<database>]" in done.stderr


def test_several_commands_in_one_text_are_all_answered(observer: Login) -> None:
    with console(observer).connect() as connection:
        cursor = connection.execute("SHOW VERSION; SHOW STATE;")
        assert cursor.fetchall()[0][0].startswith("PgBouncer 1.25.2 compatible, pgsluice ")
        assert cursor.nextset()
        assert cursor.fetchall()[0] == ("active", "yes")


def test_a_text_with_an_error_does_nothing(observer: Login) -> None:
    with console(observer).connect() as connection:
        with pytest.raises(psycopg.errors.SyntaxError, match="SHOW HELP says what there is") as refused:
            connection.execute("SHOW VERSION; SHOW NOTHING")
        assert "SHOW HELP, VERSION, CONFIG" in (refused.value.diag.message_hint or "")
        assert connection.execute("SHOW VERSION").fetchall()


def test_what_drivers_say_on_connecting_is_taken(observer: Login) -> None:
    with console(observer).connect() as connection:
        connection.execute("SET client_encoding TO 'UTF8'")
        connection.execute("SET extra_float_digits = 3")
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert connection.execute("SHOW transaction_read_only").fetchone() == ("off",)
        assert connection.execute("SHOW TRANSACTION ISOLATION LEVEL").fetchone() == ("read committed",)
        assert connection.execute("").statusmessage is None
        connection.execute("DISCARD ALL")
        assert connection.info.parameter_status("server_version") == "1.25.2/bouncer"


def test_a_transaction_around_commands_is_taken(observer: Login) -> None:
    with console(observer).connect(autocommit=False) as connection, connection.transaction():
        assert connection.execute("SHOW LISTS").fetchall()[0] == ("databases", 2)


def test_commands_can_be_prepared_and_answered_in_binary(observer: Login) -> None:
    with console(observer).connect() as connection, connection.cursor(binary=True) as cursor:
        for _ in range(3):
            rows = cursor.execute("SHOW DATABASES", prepare=True).fetchall()
            assert [row[0] for row in rows] == ["app", "pgbouncer"]
        stats = cursor.execute("SHOW STATS").fetchall()[0]
        assert all(number == int(number) for number in stats[1:])


def test_parameters_are_refused_and_the_connection_goes_on(observer: Login) -> None:
    with console(observer).connect() as connection:
        with pytest.raises(psycopg.Error):
            connection.execute("SHOW POOLS %s", (1,))
        assert connection.execute("SHOW VERSION").fetchall()


async def test_asyncpg_reads_numbers(observer: Login) -> None:
    async with console(observer).asyncpg() as connection:
        pools = await connection.fetch("SHOW POOLS")
        assert [pool["cl_waiting"] for pool in pools] == [0] * len(pools)
        assert await connection.fetchval("SHOW VERSION")
        await connection.reset()


def test_figures_count_what_clients_do(own: Proxy, operator: Login, application: Login) -> None:
    before = of_app(operator, "STATS")
    with application.connect(autocommit=False) as connection:
        for _ in range(3):
            connection.execute("SELECT pg_backend_pid()")
        connection.commit()
    with application.connect() as connection:
        for _ in range(4):
            connection.execute("SELECT 1", prepare=True)
    after = wait_until(
        lambda: (
            now
            if (now := of_app(operator, "STATS"))["total_query_count"] >= before["total_query_count"] + 9
            else None
        )
    )
    assert after is not None
    # BEGIN, three statements and COMMIT; then four of their own, and before them a Parse with its Sync.
    assert after["total_query_count"] - before["total_query_count"] == 9
    assert after["total_requests"] == after["total_query_count"]
    assert after["total_xact_count"] - before["total_xact_count"] == 6
    assert after["total_client_parse_count"] - before["total_client_parse_count"] == 1
    assert after["total_bind_count"] - before["total_bind_count"] == 4
    assert after["total_server_parse_count"] > before["total_server_parse_count"]
    assert after["total_xact_time"] >= after["total_query_time"] > before["total_query_time"]
    assert after["total_sent"] > before["total_sent"]
    assert after["avg_query_time"] > 0


def test_clients_and_servers_are_shown_with_each_other(
    own: Proxy, operator: Login, application: Login
) -> None:
    with application.connect(application_name="accounts") as connection:
        assert {row["state"] for row in show(operator, "CLIENTS") if row["database"] == "app"} == {"idle"}
        connection.execute("LISTEN news")
        client = next(row for row in show(operator, "CLIENTS") if row["database"] == "app")
        server = next(row for row in show(operator, "SERVERS") if row["state"] == "active")
        pin = show(operator, "PINS")[0]
        pools = show(operator, "POOLS")
        process_id = connection.info.backend_pid
    assert client["user"] == application.user
    assert client["user_id"] == "application@example.com"
    assert client["application_name"] == "accounts"
    assert client["id"] == process_id
    assert (client["link"], server["link"]) == (server["ptr"], client["ptr"])
    assert server["user"] == "app_rw"
    assert (pin["id"], pin["reasons"]) == (client["id"], "listen")
    writers = next(row for row in pools if row["user"] == "app_rw")
    assert (writers["cl_active"], writers["sv_active"], writers["pool_mode"]) == (1, 1, "transaction")


def test_routes_are_explained_with_the_functions_of_the_database(observer: Login) -> None:
    with console(observer).connect(row_factory=dict_row) as connection:
        first, second = connection.execute("SHOW ROUTE 'SELECT 1; INSERT INTO t VALUES (''x'')'").fetchall()
        assert (first["intent"], first["target"]) == ("read", "readonly")
        assert (second["intent"], second["needs"]) == ("write", "write")
        with pytest.raises(psycopg.errors.InvalidCatalogName):
            connection.execute("SHOW ROUTE nowhere 'SELECT 1'")


def test_passwords_are_not_shown(own: Proxy, operator: Login) -> None:
    passwords = set(own.installation.passwords.values())
    settings = {row["key"]: row["value"] for row in show(operator, "CONFIG")}
    assert settings["databases.app.pools.primary.password"] == "***"
    assert not passwords & set(settings.values())
    assert settings["max_client_conn"] == "5000"


# -- permissions


def test_a_key_without_permissions_is_refused_each_command_and_keeps_its_connection(
    writer: Login, installation: Installation
) -> None:
    with console(writer).connect() as connection:
        for command in ("SHOW POOLS", "PAUSE", "SHOW ROUTE 'SELECT 7'"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
                connection.execute(command)
            assert (refused.value.diag.message_detail or "").startswith("INSUFFICIENT_PERMISSIONS")
        assert connection.execute("SELECT 1").fetchone() == (1,)
    rows = recorded(installation, writer.user, 3)
    assert [row["statement"] for row in rows] == ["SHOW POOLS", "PAUSE", "ROUTE"]
    assert {(row["sqlstate"], row["code"]) for row in rows} == {("42501", "INSUFFICIENT_PERMISSIONS")}


def test_a_key_that_reads_metrics_changes_nothing(observer: Login) -> None:
    with console(observer).connect() as connection:
        assert connection.execute("SHOW POOLS").fetchall()
        for command in (
            "PAUSE",
            "RESUME",
            "RECONNECT",
            "WAIT_CLOSE",
            "KILL",
            "KILL_CLIENT 1",
            "DISABLE app",
            "ENABLE app",
            "RELOAD",
            "SHUTDOWN",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(command)


def test_what_changes_something_is_recorded(own: Proxy, operator: Login, installation: Installation) -> None:
    with console(operator).connect() as connection:
        connection.execute("SHOW POOLS")
        connection.execute("PAUSE app")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            connection.execute('pause "app";')
        connection.execute("RESUME")
    rows = recorded(installation, operator.user, 3)
    assert [(row["statement"], row["sqlstate"]) for row in rows] == [
        ("PAUSE app", None),
        ("PAUSE app", "55000"),
        ("RESUME", None),
    ]
    assert {row["database"] for row in rows} == {"pgsluice"}
    assert rows[0]["user_id"] == "operator@example.com"


def recorded(installation: Installation, key_id: str, at_least: int) -> list[dict[str, Any]]:
    query = "SELECT * FROM sluice.api_access_logs WHERE key_id = %s AND event = 'admin' ORDER BY id"
    with installation.superuser().connect(row_factory=dict_row) as connection:
        return (
            wait_until(
                lambda: (
                    rows if len(rows := connection.execute(query, (key_id,)).fetchall()) >= at_least else None
                ),
                message=f"{at_least} records of commands",
            )
            or []
        )


def test_a_wrong_key_does_not_reach_the_console(observer: Login) -> None:
    wrong = replace(console(observer), password=observer.password[:-1] + "?")
    with pytest.raises(psycopg.OperationalError, match="API key rejected"):
        wrong.connect()


def test_a_revoked_key_loses_the_console_too(
    own: Proxy, make_key: MakeKey, installation: Installation
) -> None:
    login = own.login(*make_key(["read:metrics"]))
    with console(login).connect() as connection:
        assert connection.execute("SHOW VERSION").fetchall()
        installation.execute(f"SELECT sluice.revoke_api_key('{login.user}')")

        def closed() -> bool:
            try:
                connection.execute("SELECT 1")
            except psycopg.OperationalError:  # its text may be lost with the connection
                return True
            return False

        wait_until(closed, message="the console's client is closed")


def test_visitors_of_the_console_count_as_clients(start_proxy: StartProxy, make_key: MakeKey) -> None:
    proxy = start_proxy({"listen": {"max_clients": 2}})
    login = proxy.login(*make_key(["admin"]))
    with (
        console(login).connect(),
        login.connect(),
        pytest.raises(psycopg.OperationalError, match="too many clients"),
    ):
        console(login).connect()


def test_a_database_of_that_name_comes_before_the_console(
    start_proxy: StartProxy, make_key: MakeKey, proxy: Proxy
) -> None:
    configured = yaml.safe_load(proxy.config.read_text())["databases"]["app"]
    own = start_proxy({"databases": {"pgbouncer": configured}})
    login = own.login(*make_key(["admin"]))
    with console(login, "pgbouncer").connect() as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("app",)
    with console(login, "pgsluice").connect() as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("pgsluice",)


# -- PAUSE and RESUME


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


# -- the other commands


def test_a_client_is_killed_by_its_id(own: Proxy, operator: Login, application: Login) -> None:
    with application.connect() as connection, console(operator).connect() as commands:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        commands.execute(f"KILL_CLIENT {connection.info.backend_pid}")
        with pytest.raises(psycopg.errors.AdminShutdown, match="administrator command"):
            connection.execute("SELECT 1")
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            commands.execute(f"KILL_CLIENT {connection.info.backend_pid}")


def test_killing_a_client_ends_its_statement_on_the_server(
    own: Proxy, operator: Login, application: Login, installation: Installation
) -> None:
    with application.connect() as connection, console(operator).connect() as commands:

        def killed() -> None:
            with pytest.raises(psycopg.errors.AdminShutdown):
                connection.execute("SELECT pg_sleep(60)")

        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        servers = [installation.superuser(server) for server in installation.cluster.servers]

        def asleep() -> int:
            count = 0
            for server in servers:
                with server.connect() as superuser:
                    (found,) = superuser.execute(sleeping).fetchone() or (0,)
                    count += found
            return count

        with in_thread(killed):
            wait_until(lambda: asleep() == 1)
            commands.execute(f"KILL_CLIENT {connection.info.backend_pid}")
        wait_until(lambda: asleep() == 0)


def test_killing_a_database_ends_its_clients_and_new_ones_wait_for_resume(
    own: Proxy, operator: Login, application: Login
) -> None:
    with application.connect() as connection, console(operator).connect() as commands:
        connection.execute("SELECT 1")
        commands.execute("KILL app")
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("SELECT 1")
        assert show(operator, "SERVERS") == []
        with application.connect() as later, in_thread(lambda: later.execute("SELECT 1")) as waiting:
            wait_until(lambda: of_pools_of(operator, "cl_waiting") == 1)
            assert waiting.is_alive()
            commands.execute("RESUME")


def of_pools_of(login: Login, column: str) -> int:
    return sum(int(row[column]) for row in show(login, "POOLS"))


def test_a_disabled_database_takes_nobody_new(own: Proxy, operator: Login, application: Login) -> None:
    with application.connect() as connection, console(operator).connect() as commands:
        commands.execute("DISABLE app")
        with pytest.raises(psycopg.OperationalError, match='database "app" takes no new connections'):
            application.connect()
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert of_app(operator, "DATABASES")["disabled"] == 1
        commands.execute("ENABLE app")
        application.connect().close()


def test_reconnect_renews_every_server_connection(own: Proxy, operator: Login, application: Login) -> None:
    with application.connect(autocommit=False) as busy, console(operator).connect() as commands:
        busy.execute("SELECT pg_backend_pid()")
        before = {row["ptr"] for row in show(operator, "SERVERS")}
        commands.execute("RECONNECT")
        kept = [row for row in show(operator, "SERVERS") if row["ptr"] in before]
        assert [(row["state"], row["close_needed"]) for row in kept] == [("active", 1)]
        with in_thread(lambda: commands.execute("WAIT_CLOSE app")) as waiting:
            waiting.join(0.3)
            assert waiting.is_alive()
            busy.commit()
        assert not before & {row["ptr"] for row in show(operator, "SERVERS")}
        assert busy.execute("SELECT 1").fetchone() == (1,)


def test_reload_takes_over_what_it_can_and_tells_what_it_cannot(own: Proxy, operator: Login) -> None:
    content = yaml.safe_load(own.config.read_text())
    content["databases"]["app"]["pools"]["primary"]["max"] = 17
    content["listen"]["port"] = 7777
    own.config.write_text(yaml.safe_dump(content))
    with console(operator).connect() as connection:
        notices: list[str] = []
        connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        connection.execute("RELOAD")
        assert notices == ["a restart is needed for: listen.port"]
        settings = {row[0]: row[1] for row in connection.execute("SHOW CONFIG").fetchall()}
        assert settings["databases.app.pools.primary.max"] == "17"
        assert settings["listen.port"] == str(own.port)


def test_reload_refuses_what_has_errors_and_says_which(own: Proxy, operator: Login) -> None:
    own.config.write_text(own.config.read_text().replace("max: 10", "max: none"))
    with console(operator).connect() as connection:
        with pytest.raises(psycopg.errors.ConfigFileError) as refused:
            connection.execute("RELOAD")
        assert "databases.app.pools.primary.max" in (refused.value.diag.message_detail or "")
        assert connection.execute("SHOW VERSION").fetchall()


def test_shutdown_drains_and_exits(own: Proxy, operator: Login, application: Login) -> None:
    with application.connect(autocommit=False) as busy, console(operator).connect() as connection:
        busy.execute("SELECT 1")
        assert connection.execute("SHUTDOWN").statusmessage == "SHUTDOWN"
        with pytest.raises(psycopg.OperationalError):
            wait_until(lambda: connection.execute("SELECT 1") is None)
        assert busy.execute("SELECT 2").fetchone() == (2,)
        busy.commit()
        assert own.process.wait(20.0) == 0


def test_shutdown_can_wait_for_all_clients_to_leave(own: Proxy, operator: Login, application: Login) -> None:
    with application.connect() as idle, console(operator).connect() as connection:
        connection.execute("SHUTDOWN WAIT_FOR_CLIENTS")
        with pytest.raises(psycopg.OperationalError):
            application.connect()
        assert idle.execute("SELECT 1").fetchone() == (1,)
        assert connection.execute("SHOW VERSION").fetchall()
        assert own.process.poll() is None
    assert own.process.wait(20.0) == 0


def test_sigterm_ends_visitors_of_the_console(own: Proxy, operator: Login) -> None:
    with console(operator).connect() as connection:
        began = time.monotonic()
        own.stop()
        assert time.monotonic() - began < 10.0
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("SELECT 1")


def test_sigterm_does_not_wait_for_the_end_of_a_pause(
    own: Proxy, operator: Login, application: Login
) -> None:
    with application.connect() as connection, console(operator).connect() as commands:
        commands.execute("PAUSE")

        def refused() -> None:
            with pytest.raises(psycopg.errors.AdminShutdown):
                connection.execute("SELECT 1")

        with in_thread(refused):
            wait_until(lambda: of_pools_of(operator, "cl_waiting") == 1)
            began = time.monotonic()
            own.stop()
            assert time.monotonic() - began < 10.0


def test_a_client_that_talks_nonsense_is_told_so_and_ended(own: Proxy, operator: Login) -> None:
    with console(operator).connect() as connection:
        with pytest.raises(psycopg.Error):
            connection.execute("SHOW ROUTE '" + "x" * 70_000 + "'")
        assert connection.closed
    with console(operator).connect() as connection:
        assert connection.execute("SHOW VERSION").fetchall()


def test_json_lines_tell_of_commands_too(own: Proxy, operator: Login) -> None:
    with console(operator).connect() as connection:
        connection.execute("RECONNECT app")

    def line() -> dict[str, Any] | None:
        for text in own.output.read_text().splitlines():
            record: dict[str, Any] = json.loads(text)
            if record.get("event") == "admin":
                return record
        return None

    record = wait_until(line)
    assert record is not None
    assert (record["statement"], record["key_id"]) == ("RECONNECT app", operator.user)
