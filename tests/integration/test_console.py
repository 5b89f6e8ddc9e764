"""The admin console on a real proxy: what it shows psql and drivers, who may enter, and what is recorded of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.rows import dict_row

from tests.integration.conftest import MakeKey, StartProxy
from tests.integration.consoles import console, of_app, show
from tests.integration.support import Installation, Login, Proxy, wait_until


@pytest.fixture(scope="session")
def observer(proxy: Proxy, make_key: MakeKey) -> Login:
    """Give the login of a monitoring system."""
    return proxy.login(*make_key(["read:metrics"], "observer@example.com"))


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


def test_a_client_that_talks_nonsense_is_told_so_and_ended(own: Proxy, operator: Login) -> None:
    with console(operator).connect() as connection:
        with pytest.raises(psycopg.Error):
            connection.execute("SHOW ROUTE '" + "x" * 70_000 + "'")
        assert connection.closed
    with console(operator).connect() as connection:
        assert connection.execute("SHOW VERSION").fetchall()


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


@pytest.mark.long
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


@pytest.mark.long
def test_visitors_of_the_console_count_as_clients(start_proxy: StartProxy, make_key: MakeKey) -> None:
    proxy = start_proxy({"listen": {"max_clients": 2}})
    login = proxy.login(*make_key(["admin"]))
    with (
        console(login).connect(),
        login.connect(),
        pytest.raises(psycopg.OperationalError, match="too many clients"),
    ):
        console(login).connect()


@pytest.mark.long
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
