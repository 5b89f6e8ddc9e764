"""Handing over to a new process: no client is refused, cut off or left waiting."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.integration.conftest import MakeKey, MakeTable
from tests.integration.handing_over import Dynasty, activated, dynasty
from tests.integration.support import Installation, Proxy, soon, wait_until
from tests.integration.test_cancel import sleepers


@pytest.fixture
def line(installation: Installation, tmp_path: Path) -> Iterator[Dynasty]:
    """Give a proxy that can be handed over, on a Unix socket too."""
    (tmp_path / "sockets").mkdir()
    with dynasty(
        installation, tmp_path / "proxy", {"listen": {"unix_socket_dir": str(tmp_path / "sockets")}}
    ) as running:
        yield running


def test_a_new_process_takes_new_clients_while_the_old_one_serves_its_own(
    line: Dynasty, make_key: MakeKey, tmp_path: Path
) -> None:
    login = line.login(*make_key())
    old = line.pid
    with login.connect() as staying, login.connect() as transaction:
        transaction.execute("BEGIN")
        transaction.execute("SELECT pg_current_xact_id()")
        new = line.hand_over()
        assert new != old
        for host in ("127.0.0.1", str(tmp_path / "sockets")):
            with login.connect(host=host) as later:
                assert _told(later) == (1,)
        assert _clients(line) == 0, "the new process tells of its own clients"
        assert _told(staying) == (1,)
        transaction.execute("SELECT pg_current_xact_id()")
        transaction.execute("COMMIT")
        assert line.alive() == [old, new]
    wait_until(lambda: line.alive() == [new], message="the old process ends with its last client")
    assert (tmp_path / "sockets" / f".s.PGSQL.{line.port}").is_socket()
    with login.connect() as later:
        assert _told(later) == (1,)


@pytest.mark.long
def test_sessions_that_stay_are_ended_between_transactions_after_the_drain_timeout(
    installation: Installation, tmp_path: Path, make_key: MakeKey
) -> None:
    with dynasty(installation, tmp_path / "proxy", {"listen": {"drain_timeout": "1s"}}) as line:
        login = line.login(*make_key())
        with login.connect() as idle, login.connect() as working:
            working.execute("BEGIN")
            working.execute("SELECT pg_current_xact_id()")
            line.hand_over()
            handed_over = time.monotonic()
            with pytest.raises(psycopg.errors.AdminShutdown):
                while True:
                    idle.execute("SELECT 1")
                    time.sleep(0.2)
            assert 0.5 < time.monotonic() - handed_over < 3
            working.execute("COMMIT")
        wait_until(lambda: len(line.alive()) == 1, message="the old process ends")


@pytest.mark.parametrize("wrong", ["configuration", "login"])
@pytest.mark.long
def test_the_old_process_goes_on_where_the_new_one_can_t_serve(
    line: Dynasty, make_key: MakeKey, wrong: str
) -> None:
    login = line.login(*make_key())
    sound = line.config.read_text()
    if wrong == "configuration":
        line.config.write_text(sound + "\nlisten_on: everything\n")
    else:
        line.config.write_text(sound.replace("user: app_rw", "user: postgres"))
    os.kill(line.pid, signal.SIGUSR2)
    wait_until(lambda: line.said("no handover, this process goes on serving"))
    why = {"configuration": "listen_on", "login": "pass by row-level security"}[wrong]
    assert why in line.errors.read_text().partition("no handover")[2], line.tail()
    with login.connect() as later:
        assert _told(later) == (1,)
    assert not psutil.Process(line.pid).children()
    line.config.write_text(sound)
    line.hand_over()
    with login.connect() as later:
        assert _told(later) == (1,)


@pytest.mark.long
def test_sigterm_during_a_handover_ends_both(line: Dynasty) -> None:
    os.kill(line.pid, signal.SIGUSR2)
    wait_until(lambda: psutil.Process(line.pid).children(), message="a new process starts")
    (new,) = psutil.Process(line.pid).children()
    line.stop()
    assert not new.is_running()


@pytest.mark.long
async def test_cancel_requests_find_sessions_of_the_other_process(
    line: Dynasty, make_key: MakeKey, installation: Installation
) -> None:
    login = line.login(*make_key())
    generations = [await login.aconnect()]
    for _ in range(2):
        await asyncio.to_thread(line.hand_over)
        generations.append(await login.aconnect())
    for connection in generations:
        running = asyncio.create_task(connection.execute("SELECT pg_sleep(30)"))
        await soon(lambda: sleepers(installation) == 1, message="the statement runs")
        # It arrives at the newest process, whoever the session is with.
        await connection.cancel_safe(timeout=10)
        with pytest.raises(psycopg.errors.QueryCanceled):
            await running
        assert _number(connection) not in {_number(each) for each in generations if each is not connection}
    for connection in generations:
        await connection.close()


@pytest.mark.long
def test_a_handover_waits_for_resume(line: Dynasty, make_key: MakeKey) -> None:
    with line.login(*make_key(["admin"])).connect(dbname="pgsluice") as console:
        console.execute("PAUSE")
        os.kill(line.pid, signal.SIGUSR2)
        wait_until(lambda: line.said("app is paused"))
        console.execute("RESUME")
        line.hand_over()


@pytest.mark.long
def test_metrics_and_readiness_come_from_the_new_process(line: Dynasty) -> None:
    seen: list[object] = []
    ended = threading.Event()

    def probe() -> None:
        while not ended.is_set():
            try:
                with urllib.request.urlopen(line.url("/readyz"), timeout=10) as answer:
                    seen.append(answer.status)
            except (urllib.error.URLError, OSError) as error:
                seen.append(error)
            time.sleep(0.005)

    first = _started(line)
    thread = threading.Thread(target=probe)
    thread.start()
    for _ in range(3):
        line.hand_over()
    ended.set()
    thread.join()
    assert len(seen) > 50
    assert set(seen) == {200}
    assert _started(line) > first


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["SIGUSR2", "SIGHUP"])
def test_twenty_times_under_load_nothing_fails(
    line: Dynasty, make_key: MakeKey, make_table: MakeTable, how: str, tmp_path: Path
) -> None:
    table = make_table("who integer, number integer")
    login = line.login(*make_key())
    script = tmp_path / "insert.sql"
    script.write_text(f"INSERT INTO {table} VALUES (-1, 1);\n")
    failures: list[str] = []
    counts = [0] * 6
    ended = threading.Event()

    def visit() -> None:
        # A connection for each transaction.
        while not ended.is_set():
            done = login.run("pgbench", "-n", "-C", "-c", "8", "-T", "3", "-f", str(script), timeout=60)
            text = done.stdout + done.stderr
            if done.returncode or "number of failed transactions: 0 (" not in text or "error" in text.lower():
                failures.append(text)

    def stay(who: int) -> None:
        # Sessions of some seconds, with transactions of up to 100 ms.
        try:
            while not ended.is_set():
                with login.connect(autocommit=False) as connection:
                    until = time.monotonic() + 3 + who
                    while time.monotonic() < until and not ended.is_set():
                        connection.execute(f"INSERT INTO {table} VALUES (%s, %s)", (who, counts[who]))
                        connection.execute("SELECT pg_sleep(0.02 * %s)", (who,))
                        connection.commit()
                        counts[who] += 1
        except Exception as error:
            failures.append(f"{who}: {error!r}")

    threads = [
        threading.Thread(target=visit),
        *(threading.Thread(target=stay, args=(who,)) for who in range(6)),
    ]
    for thread in threads:
        thread.start()
    for _ in range(20):
        if how == "SIGUSR2":
            line.hand_over()
        else:
            os.kill(line.pid, signal.SIGHUP)
            time.sleep(0.5)
    ended.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[:3]
    with line.installation.superuser().connect() as connection:
        written = dict(connection.execute(f"SELECT who, count(*) FROM {table} GROUP BY who").fetchall())
    assert {who: written[who] for who in range(6)} == dict(enumerate(counts)), "each is there once"
    assert written[-1] > 50
    wait_until(lambda: len(line.alive()) == 1, message="the old processes end")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.long
def test_records_of_both_processes_are_in_the_table_once(
    installation: Installation, tmp_path: Path, make_key: MakeKey, workers: int
) -> None:
    changes = {"workers": workers, "databases": {"app": {"pools": {"primary": {"max": 12}}}}}
    with dynasty(installation, tmp_path, changes) as line:
        key_id, key = make_key()
        login = line.login(key_id, key)
        for round_ in range(2):
            connections = [login.connect() for _ in range(4)]
            for number, connection in enumerate(connections):
                for _ in range(25):
                    connection.execute(f"SELECT pg_current_xact_id() AS record_{round_}_{number}")
            line.hand_over()
            for connection in connections:
                connection.execute("SELECT 1")
                connection.close()
        wait_until(lambda: len(line.alive()) == 1, message="the old processes end")
    with installation.superuser().connect() as connection:
        found = connection.execute(
            "SELECT count(*), count(DISTINCT id) FROM sluice.api_access_logs WHERE key_id = %s AND event = 'statement'",
            (key_id,),
        ).fetchone()
    assert found == (208, 208)


@pytest.mark.long
def test_sockets_of_systemd_are_used_and_passed_on(
    installation: Installation, tmp_path: Path, make_key: MakeKey
) -> None:
    line = Dynasty(installation, tmp_path, {"listen": {"port": 1}, "http": {"port": 2}})
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / f".s.PGSQL.{line.port}"))
    unix.listen()
    with (
        socket.create_server(("127.0.0.1", line.port)) as tcp,
        socket.create_server(("127.0.0.1", line.http_port)) as http,
        unix,
    ):
        descriptors = {"postgres": [tcp.fileno(), unix.fileno()], "http": [http.fileno()]}
        line.adopt(activated(line, descriptors))
        login = line.login(*make_key())
        try:
            for _ in range(2):
                for host in ("127.0.0.1", str(tmp_path)):
                    with login.connect(host=host) as connection:
                        assert _told(connection) == (1,)
                with urllib.request.urlopen(line.url("/readyz"), timeout=10) as answer:
                    assert answer.status == 200
                line.hand_over()
        finally:
            line.stop()
    assert (tmp_path / f".s.PGSQL.{line.port}").is_socket(), "it is systemd's"


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        ("listening", "web", 'is called "web"'),
        ("unbound", "postgres", "doesn't listen"),
        ("datagrams", "postgres", "is no stream socket"),
        ("file", "postgres", "is no socket"),
        ("listening", "http", "none of the sockets is called postgres"),
    ],
)
def test_what_is_no_listening_socket_of_a_known_name_is_refused(
    installation: Installation, tmp_path: Path, kind: str, name: str, why: str
) -> None:
    proxy = Proxy(installation, tmp_path)
    given: dict[str, Callable[[], int]] = {
        "listening": lambda: socket.create_server(("127.0.0.1", 0)).detach(),
        "unbound": lambda: socket.socket().detach(),
        "datagrams": lambda: socket.socket(type=socket.SOCK_DGRAM).detach(),
        "file": lambda: os.open(tmp_path, os.O_RDONLY),
    }
    descriptor = given[kind]()
    try:
        assert activated(proxy, {name: [descriptor]}).wait(30) == 1
    finally:
        os.close(descriptor)
    assert why in proxy.errors.read_text()


@pytest.mark.long
def test_systemd_is_told_of_each_step(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with dynasty(installation, tmp_path / "proxy") as line:
            assert manager.recv(1000) == b"READY=1"
            os.kill(line.pid, signal.SIGHUP)
            assert manager.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert manager.recv(1000) == b"READY=1"
            new = line.hand_over()
            assert {manager.recv(1000), manager.recv(1000)} == {b"READY=1", f"MAINPID={new}".encode()}
        assert manager.recv(1000) == b"STOPPING=1"


@pytest.mark.long
def test_a_second_proxy_at_the_same_port_is_refused(line: Dynasty, tmp_path: Path) -> None:
    for workers in (1, 2):
        second = Proxy(line.installation, tmp_path, {"listen": {"port": line.port}, "workers": workers})
        with pytest.raises(AssertionError, match="Address already in use"):
            second.start()
        assert second.process.returncode == 1


def _told(connection: psycopg.Connection[object]) -> object:
    return connection.execute("SELECT 1").fetchone()


def _number(connection: psycopg.AsyncConnection[object]) -> int:
    return connection.info.backend_pid & 255


def _started(line: Dynasty) -> float:
    """Return when the process started that tells the metrics, in seconds since 1970."""
    with urllib.request.urlopen(line.url("/metrics"), timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(each for each in lines if each.startswith("process_start_time")).split()[1])


def _clients(line: Dynasty) -> int:
    with urllib.request.urlopen(line.url("/health"), timeout=10) as answer:
        return int(json.load(answer)["clients"])
