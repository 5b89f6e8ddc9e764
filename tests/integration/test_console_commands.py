"""KILL, DISABLE, RECONNECT, RELOAD and SHUTDOWN on the console of a real proxy, with clients at work."""

from __future__ import annotations

import time

import psycopg
import pytest
import yaml

from tests.integration.consoles import console, in_thread, of_app, pools_of, show
from tests.integration.support import Installation, Login, Proxy, wait_until


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
            wait_until(lambda: pools_of(operator, "cl_waiting") == 1)
            assert waiting.is_alive()
            commands.execute("RESUME")


def test_a_disabled_database_takes_nobody_new(own: Proxy, operator: Login, application: Login) -> None:
    with application.connect() as connection, console(operator).connect() as commands:
        commands.execute("DISABLE app")
        with pytest.raises(psycopg.OperationalError, match='database "app" takes no new connections'):
            application.connect()
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert of_app(operator, "DATABASES")["disabled"] == 1
        commands.execute("ENABLE app")
        application.connect().close()


@pytest.mark.long
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
