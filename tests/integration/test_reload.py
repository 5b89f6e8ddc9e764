"""RELOAD and SIGHUP: what changes while clients are connected, and that none of them notices."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import yaml

from tests.integration.conftest import MakeKey, MakeTable, StartProxy
from tests.integration.support import DATABASE, Installation, Login, Proxy, merged, wait_until

Edit = Callable[[dict[str, Any]], None]

DONE = "configuration read again"
REFUSED = "reload refused, the old configuration stays"


@pytest.fixture
def operator(own: Proxy, make_key: MakeKey) -> Login:
    return replace(own.login(*make_key(["admin"], "operator@example.com")), database="pgsluice")


def edited(proxy: Proxy) -> dict[str, Any]:
    """Return what the configuration's file says."""
    content: dict[str, Any] = yaml.safe_load(proxy.config.read_text())
    return content


def edit(proxy: Proxy, change: Edit) -> None:
    """Change the configuration's file."""
    content = edited(proxy)
    change(content)
    proxy.config.write_text(yaml.safe_dump(content, sort_keys=False))


def laid_over(**changes: Any) -> Edit:
    """Return the edit that lays `changes` over what there is."""

    def change(content: dict[str, Any]) -> None:
        changed = merged(content, changes)
        content.clear()
        content.update(changed)

    return change


def app(**changes: Any) -> Edit:
    return laid_over(databases={DATABASE: changes})


def hosts(change: Callable[[list[dict[str, Any]]], None]) -> Edit:
    return lambda content: change(content["databases"][DATABASE]["hosts"])


def count(proxy: Proxy, text: str) -> int:
    return proxy.errors.read_text(errors="replace").count(text)


def hang_up(proxy: Proxy, change: Edit, expected: str = DONE) -> None:
    """Reload by SIGHUP; wait until the log says what became of it."""
    before = count(proxy, expected)
    edit(proxy, change)
    proxy.process.send_signal(signal.SIGHUP)
    wait_until(lambda: count(proxy, expected) > before, message=expected)


def reload(operator: Login) -> list[str]:
    """Reload by the console; returns its notices."""
    notices: list[str] = []
    with operator.connect() as connection:
        connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
        connection.execute("RELOAD")
    return notices


def shown(operator: Login, subject: str) -> list[tuple[Any, ...]]:
    with operator.connect() as connection:
        return connection.execute(f"SHOW {subject}").fetchall()


def setting(operator: Login, key: str) -> str:
    return {row[0]: str(row[1]) for row in shown(operator, "CONFIG")}[key]


def value(connection: psycopg.Connection[Any], statement: str) -> Any:
    row = connection.execute(statement).fetchone()
    assert row is not None
    return row[0]


def backends(installation: Installation, user: str, proxy: Proxy) -> set[int]:
    """Return the processes of the primary that serve the role `user` for `proxy`: others of the tests have it too."""
    ours = {
        each.laddr.port for each in psutil.Process(proxy.process.pid).net_connections("tcp") if each.raddr
    }
    with installation.superuser().connect() as connection:
        rows = connection.execute(
            "SELECT pid, client_port FROM pg_stat_activity WHERE usename = %s", (user,)
        ).fetchall()
    return {pid for pid, port in rows if port in ours}


# -- the log, numbers, what needs a restart


def test_the_log_and_limits_change_and_what_needs_a_restart_is_named(
    own: Proxy, operator: Login, application: Login
) -> None:
    with application.connect() as client:
        edit(
            own,
            laid_over(
                logging={"format": "json", "level": "debug"},
                listen={"max_clients": 2, "port": 7777},
                http={"port": 7778},
                auth={"methods": ["password"]},
                databases={DATABASE: {"pool_mode": "session", "timeouts": {"query": "200ms"}}},
            ),
        )
        assert reload(operator) == [
            "a restart is needed for: listen.port, http.port, databases.app.pool_mode"
        ]
        log = own.errors.read_text()
        assert '"message": "reload: a restart is needed for: listen.port, http.port' in log
        with application.connect(), pytest.raises(psycopg.OperationalError, match="too many clients"):
            application.connect()
        with pytest.raises(psycopg.errors.QueryCanceled):
            client.execute("SELECT pg_sleep(5)")
        assert value(client, "SELECT 1") == 1
    assert setting(operator, "listen.max_clients") == "2"
    assert setting(operator, "listen.port") == str(own.port)
    assert setting(operator, "databases.app.pool_mode") == "transaction"


def test_sighup_does_what_reload_does(own: Proxy, operator: Login) -> None:
    hang_up(own, laid_over(listen={"max_clients": 71}, workers=1, http={"port": 7778}))
    assert setting(operator, "listen.max_clients") == "71"
    assert own.said("reload: a restart is needed for: http.port")
    own.process.send_signal(signal.SIGHUP)
    assert reload(operator) == ["a restart is needed for: http.port"]


WRONG: dict[str, tuple[Edit, str]] = {
    "a number that is none": (app(pools={"primary": {"max": "none"}}), "databases.app.pools.primary.max"),
    "a wrong password": (
        app(pools={"primary": {"password": "wrong"}}),
        "host primary refuses the login app_rw: host=",
    ),
    "a role that there isn't": (app(pools={"background": {"user": "nobody"}}), "refuses the login nobody"),
    "a role that no policy binds": (
        app(pools={"background": {"user": "postgres"}}),
        "postgres has REPLICATION",
    ),
    "a control login": (app(control={"password": "wrong"}), "host primary refuses the control login"),
    "a certificate": (
        laid_over(listen={"tls": {"mode": "require", "cert_file": "a", "key_file": "b"}}),
        "there is no file",
    ),
    "a database without its control login": (laid_over(databases={"other": {}}), "databases.other.control"),
    "a database that nobody serves": (
        lambda content: content["databases"].update(
            other={**content["databases"][DATABASE], "hosts": [{"host": "127.0.0.1", "port": 1}]}
        ),
        "database other can't be served: 127.0.0.1:1: ",
    ),
}


def test_a_refused_reload_leaves_everything(
    own: Proxy, operator: Login, application: Login, installation: Installation
) -> None:
    as_it_was = own.config.read_text()
    with application.connect() as client:
        before = shown(operator, "CONFIG")
        processes = backends(installation, "app_rw", own)
        for what, (change, why) in WRONG.items():
            edit(own, laid_over(listen={"max_clients": 71}, logging={"format": "json"}))
            edit(own, app(pools={"priority": {"max": 9}}))
            edit(own, change)
            with pytest.raises(psycopg.errors.ConfigFileError) as refused:
                reload(operator)
            assert why in (refused.value.diag.message_detail or ""), what
            assert shown(operator, "CONFIG") == before, what
            assert value(client, "SELECT 1") == 1, what
            own.config.write_text(as_it_was)
        assert processes <= backends(installation, "app_rw", own)
        hang_up(own, WRONG["a wrong password"][0], REFUSED)
    assert count(own, REFUSED) == len(WRONG) + 1
    assert not own.said('"message"') and not own.said(DONE)


# -- hosts


def with_hosts(installation: Installation, *which: int) -> dict[str, Any]:
    servers = [installation.cluster.servers[number] for number in which]
    places = [{"name": each.name, "host": "127.0.0.1", "port": each.port} for each in servers]
    return {"databases": {DATABASE: {"hosts": places}}}


@pytest.mark.long
def test_a_host_that_comes_serves_reads_and_one_that_goes_is_drained(
    start_proxy: StartProxy, installation: Installation, make_key: MakeKey
) -> None:
    own = start_proxy(with_hosts(installation, 0))
    operator = replace(own.login(*make_key(["admin"])), database="pgsluice")
    reader = own.login(*make_key(["read:tasks"]))
    where = "SELECT pg_is_in_recovery()"
    with reader.connect() as busy, reader.connect() as other:
        assert value(busy, where) is False
        edit(own, laid_over(**with_hosts(installation, 0, 1)))
        assert reload(operator) == []
        wait_until(lambda: value(other, where) is True, message="the replica serves reads")
        busy.execute("BEGIN READ ONLY")
        assert value(busy, where) is True
        process = value(busy, "SELECT pg_backend_pid()")
        edit(own, laid_over(**with_hosts(installation, 0)))
        assert reload(operator) == []
        assert [row[1] for row in shown(operator, "HOSTS")] == ["primary"]
        assert value(other, where) is False
        assert value(busy, where) is True and value(busy, "SELECT pg_backend_pid()") == process
        assert any(row[-1] is not None for row in shown(operator, "SERVERS"))
        busy.execute("COMMIT")
        assert value(busy, where) is False
    with installation.superuser(installation.cluster.replicas[0]).connect() as replica:
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename IN ('app_ro', 'sluice_control')"
        mine = f"{sessions} AND pid = {process}"
        wait_until(lambda: value(replica, mine) == 0, message="nothing of it is left on the replica")


@pytest.mark.long
def test_a_host_that_is_reached_otherwise_is_another_one(
    own: Proxy, operator: Login, application: Login, installation: Installation, make_table: MakeTable
) -> None:
    table = make_table("id int")
    with application.connect() as busy, application.connect() as other:
        busy.execute("BEGIN")
        busy.execute(f"INSERT INTO {table} VALUES (1)")
        process = value(busy, "SELECT pg_backend_pid()")
        edit(own, hosts(lambda all_: all_[0].update(tls={"mode": "disable"})))
        assert reload(operator) == []
        other.execute(f"INSERT INTO {table} VALUES (2)")
        assert value(other, "SELECT 1") == 1
        busy.execute("COMMIT")
        busy.execute(f"INSERT INTO {table} VALUES (3)")
    wait_until(lambda: process not in backends(installation, "app_rw", own))
    with installation.superuser().connect() as superuser:
        assert value(superuser, f"SELECT count(*) FROM {table}") == 3


@pytest.mark.long
def test_a_host_that_does_not_answer_comes_when_it_does(
    own: Proxy, operator: Login, application: Login
) -> None:
    edit(own, hosts(lambda all_: all_.append({"name": "third", "host": "127.0.0.1", "port": 1})))
    with application.connect() as client:
        assert reload(operator) == []
        assert own.said("host third doesn't answer yet")
        assert value(client, "SELECT 1") == 1
    assert [row[1] for row in shown(operator, "HOSTS")] == ["primary", "replica1", "third"]


# -- logins and pools


@pytest.mark.long
def test_a_password_is_exchanged_under_load(
    own: Proxy, operator: Login, installation: Installation, make_key: MakeKey, make_table: MakeTable
) -> None:
    table = make_table("id int")
    writer = own.login(*make_key())
    new = {"user": "app_rw", "password": "a new one"}
    try:
        with hammering(writer, f"INSERT INTO {table} VALUES (1)") as done, writer.connect() as busy:
            busy.execute("BEGIN")
            busy.execute(f"INSERT INTO {table} VALUES (2)")
            before = backends(installation, "app_rw", own)
            installation.execute("ALTER ROLE app_rw PASSWORD 'a new one'")
            edit(own, app(pools=dict.fromkeys(("primary", "priority", "background"), new)))
            assert reload(operator) == []
            busy.execute("COMMIT")
            wait_until(
                lambda: not before & backends(installation, "app_rw", own), message="old connections end"
            )
            reached = len(done)
            wait_until(lambda: len(done) > reached + 20)
    finally:
        installation.execute(f"ALTER ROLE app_rw PASSWORD '{installation.passwords['app_rw']}'")


@pytest.mark.long
def test_a_pool_of_another_user_serves_nothing_as_the_old_one(
    own: Proxy, operator: Login, application: Login, installation: Installation
) -> None:
    edit(own, laid_over(listen={"drain_timeout": "500ms"}))
    edit(own, app(pools={"background": {"max": 3}}))
    assert reload(operator) == []
    with application.connect() as busy, application.connect() as keeps, application.connect() as other:
        for client in (busy, keeps, other):
            client.execute("SET sluice.pool = 'background'")
        busy.execute("BEGIN")
        assert value(busy, "SELECT session_user::text") == "app_rw"
        keeps.execute("CREATE TEMPORARY TABLE mine (id int)")
        edit(own, app(pools={"background": {"user": "app_ro", "password": installation.passwords["app_ro"]}}))
        assert reload(operator) == []
        assert value(other, "SELECT session_user::text") == "app_ro"
        assert value(busy, "SELECT session_user::text") == "app_rw"
        busy.execute("COMMIT")
        assert value(busy, "SELECT session_user::text") == "app_ro"
        # Who keeps a connection has drain_timeout to let go of it.
        with pytest.raises(psycopg.errors.AdminShutdown, match="configuration was changed"):
            wait_until(lambda: value(keeps, "SELECT 1") is None)


def test_pools_come_and_go(
    own: Proxy, operator: Login, application: Login, installation: Installation
) -> None:
    with application.connect() as client, application.connect() as busy:
        for each in (client, busy):
            each.execute("SET sluice.pool = 'background'")
        busy.execute("BEGIN")
        assert value(busy, "SELECT 1") == 1
        kept = edited(own)["databases"][DATABASE]["pools"]["background"]
        edit(own, lambda content: content["databases"][DATABASE]["pools"].pop("background"))
        assert reload(operator) == []
        with pytest.raises(psycopg.OperationalError, match='there is no pool "background"'):
            client.execute("SELECT 1")
        assert value(busy, "SELECT 1") == 1
        busy.execute("COMMIT")
        assert "background" not in {row[1] for row in shown(operator, "POOLS")}
        edit(own, app(pools={"background": {**kept, "user": "app_ro"}}))
        edit(own, app(pools={"background": {"password": installation.passwords["app_ro"]}}))
        assert reload(operator) == []
        assert value(client, "SELECT session_user::text") == "app_ro"


@pytest.mark.long
def test_keys_are_still_heard_of_behind_another_control_login(
    own: Proxy, operator: Login, make_key: MakeKey, installation: Installation
) -> None:
    old = installation.passwords["sluice_control"]
    key_id, key = make_key()
    try:
        installation.execute("ALTER ROLE sluice_control PASSWORD 'a new one'")
        edit(own, laid_over(auth={"cache_ttl": "10m"}))
        edit(own, app(control={"password": "a new one"}))
        with own.login(key_id, key).connect() as client:
            assert reload(operator) == []
            assert value(client, "SELECT 1") == 1
            time.sleep(0.5)
            installation.execute(f"UPDATE sluice.api_keys SET revoked_at = now() WHERE id = '{key_id}'")
            with pytest.raises(psycopg.errors.AdminShutdown):
                wait_until(lambda: value(client, "SELECT 1") is None, 5.0)
    finally:
        installation.execute(f"ALTER ROLE sluice_control PASSWORD '{old}'")


@pytest.mark.long
def test_a_pause_outlasts_a_reload(
    own: Proxy, operator: Login, application: Login, installation: Installation
) -> None:
    with application.connect() as client, operator.connect() as commands:
        commands.execute("PAUSE")
        edit(own, hosts(lambda all_: all_[0].update(tls={"mode": "disable"})))
        edit(own, app(pools={"readonly": {"user": "app_rw", "password": installation.passwords["app_rw"]}}))
        assert reload(operator) == []
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(value(client, "SELECT 1")))
        thread.start()
        thread.join(0.5)
        assert not answers
        commands.execute("RESUME")
        thread.join(10.0)
        assert answers == [1]


# -- databases


@pytest.mark.long
def test_databases_come_and_go(own: Proxy, operator: Login, application: Login) -> None:
    def second(content: dict[str, Any]) -> None:
        content["databases"]["second"] = content["databases"][DATABASE]

    elsewhere = replace(application, database="second")
    edit(own, second)
    assert reload(operator) == []
    with elsewhere.connect() as idle, elsewhere.connect() as busy:
        assert value(idle, "SELECT 1") == 1
        busy.execute("BEGIN")
        assert value(busy, "SELECT 1") == 1
        edit(own, lambda content: content["databases"].pop("second"))
        assert reload(operator) == []
        with pytest.raises(psycopg.errors.AdminShutdown, match="configuration was changed"):
            wait_until(lambda: value(idle, "SELECT 1") is None)
        assert value(busy, "SELECT 2") == 2
        with pytest.raises(psycopg.OperationalError, match='database "second" does not exist'):
            elsewhere.connect()
        busy.execute("COMMIT")
        with pytest.raises(psycopg.errors.AdminShutdown):
            wait_until(lambda: value(busy, "SELECT 1") is None)
    wait_until(lambda: own.said("database second: its last session has ended"))
    application.connect().close()


# -- under load


@contextmanager
def hammering(login: Login, statement: str) -> Iterator[list[float]]:
    """Have a long-lived session run `statement` again and again; none may fail."""
    done: list[float] = []
    ending = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with login.connect() as connection:
                while not ending.is_set():
                    connection.execute(statement)
                    done.append(time.monotonic())
                    time.sleep(0.002)
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: done or failures)
        yield done
    finally:
        ending.set()
        thread.join(30.0)
    assert not failures, failures
    assert not thread.is_alive()


@contextmanager
def connecting(login: Login, script: Path) -> Iterator[list[subprocess.CompletedProcess[str]]]:
    """Have pgbench run `script` with a connection for each transaction, round after round of two seconds."""
    rounds: list[subprocess.CompletedProcess[str]] = []
    ending = threading.Event()

    def run() -> None:
        while not ending.is_set():
            rounds.append(login.run("pgbench", "-n", "-C", "-c", "3", "-T", "2", "-f", str(script)))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield rounds
    finally:
        ending.set()
        thread.join(60.0)
    assert not thread.is_alive()


@pytest.mark.long
@pytest.mark.timeout(180)
def test_twenty_reloads_under_load_fail_no_transaction(
    start_proxy: StartProxy,
    installation: Installation,
    make_key: MakeKey,
    make_table: MakeTable,
    tmp_path: Path,
) -> None:
    table = make_table("id int")
    own = start_proxy()
    operator = replace(own.login(*make_key(["admin"])), database="pgsluice")
    writer, reader = own.login(*make_key()), own.login(*make_key(["read:tasks"]))
    script = tmp_path / "script"
    script.write_text(f"BEGIN;\nINSERT INTO {table} VALUES (1);\nSELECT count(*) FROM {table};\nCOMMIT;\n")
    primary = installation.cluster.primary.port

    def second(content: dict[str, Any]) -> None:
        content["databases"]["second"] = content["databases"][DATABASE]

    rw = {"user": "app_rw", "password": installation.passwords["app_rw"]}
    changes: list[Edit] = [
        app(pools={"primary": {"max": 5}}),
        laid_over(**with_hosts(installation, 0)),
        laid_over(**with_hosts(installation, 0, 1)),
        hosts(lambda all_: all_[0].update(tls={"mode": "disable"})),
        hosts(lambda all_: all_[0].update(host="localhost")),
        hosts(lambda all_: all_[0].update(host="127.0.0.1", port=primary)),
        app(pools={"readonly": rw}),
        app(pools={"readonly": {"user": "app_ro", "password": installation.passwords["app_ro"]}}),
        second,
        lambda content: content["databases"].pop("second"),
        app(routing={"enabled": False}),
        app(routing={"enabled": True}),
        app(health={"interval": "200ms", "max_lag": "5s"}),
        laid_over(identity={"isolation": "strict", "token_ttl": "60s"}),
        laid_over(identity={"isolation": "shared", "token_ttl": "120s"}),
        lambda content: content["databases"][DATABASE]["pools"].pop("background"),
        app(pools={"background": {**rw, "max": 1}}),
        app(pool_defaults={"connect_timeout": "4s", "max_lifetime": "2s"}),
        laid_over(logging={"level": "debug"}, auth={"cache_ttl": "1s"}),
        laid_over(logging={"level": "info"}, listen={"auth_timeout": "10s"}),
    ]
    with (
        hammering(reader, f"SELECT count(*) FROM {table}") as read,
        hammering(writer, f"INSERT INTO {table} VALUES (2)") as written,
        connecting(writer, script) as rounds,
    ):
        for number, change in enumerate(changes):
            edit(own, change)
            assert reload(operator) == [], f"reload {number}"
            time.sleep(0.3)
    assert all(ended.returncode == 0 for ended in rounds), rounds
    assert all("number of failed transactions: 0 (0.000%)" in ended.stdout for ended in rounds), rounds
    assert not any("aborted" in ended.stdout + ended.stderr for ended in rounds), rounds
    assert len(rounds) > 2 and len(read) > 100 and len(written) > 100
    assert count(own, DONE) == len(changes)
