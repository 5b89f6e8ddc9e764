"""`workers: N`: several processes behave as one proxy, and one that dies is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from tests.integration.conftest import MakeKey
from tests.integration.handing_over import Dynasty, dynasty
from tests.integration.support import DATABASE, Installation, Login, soon, wait_until
from tests.integration.test_cancel import sleepers

POOLS = {
    DATABASE: {
        "pools": {
            "primary": {"min": 3, "max": 11},
            "background": {"max": 2},
        }
    }
}


@pytest.fixture(scope="module")
def two(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dynasty]:
    """Give a proxy of two workers; tests leave it as it was."""
    directory = tmp_path_factory.mktemp("two")
    changes = {"workers": 2, "databases": POOLS, "listen": {"unix_socket_dir": str(directory)}}
    with dynasty(installation, directory / "proxy", changes) as running:
        yield running


@pytest.fixture
def both(
    two: Dynasty, make_key: MakeKey
) -> Iterator[tuple[psycopg.Connection[Any], psycopg.Connection[Any]]]:
    """Give a session in each worker, in their order."""
    with in_each(two.login(*make_key())) as connections:
        yield connections


@contextlib.contextmanager
def in_each(
    login: Login, **options: Any
) -> Iterator[tuple[psycopg.Connection[Any], psycopg.Connection[Any]]]:
    """Connect until each of two workers has a session."""
    found: dict[int, psycopg.Connection[Any]] = {}
    try:
        for _ in range(200):
            connection = login.connect(**options)
            if found.setdefault(connection.info.backend_pid & 255, connection) is not connection:
                connection.close()
            if len(found) == 2:
                break
        first, second = (found[number] for number in sorted(found))
        yield first, second
    finally:
        for connection in found.values():
            connection.close()


def test_the_kernel_shares_connections_out(two: Dynasty, make_key: MakeKey, tmp_path: Path) -> None:
    login = two.login(*make_key())
    seen: dict[int, int] = {}
    for _ in range(40):
        with login.connect() as connection:
            number = connection.info.backend_pid & 255
            seen[number] = seen.get(number, 0) + 1
    assert len(seen) == 2 and min(seen.values()) > 5
    with login.connect(host=str(two.config.parent.parent)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert len(two.workers()) == 2


async def test_cancel_requests_find_their_worker(
    two: Dynasty, make_key: MakeKey, installation: Installation
) -> None:
    login = two.login(*make_key())
    seen = set()
    for _ in range(100):
        async with await login.aconnect() as connection:
            number = connection.info.backend_pid & 255
            running = asyncio.create_task(connection.execute("SELECT pg_sleep(30)"))
            await soon(lambda: sleepers(installation) == 1, message="the statement runs")
            await connection.cancel_safe(timeout=10)
            with pytest.raises(psycopg.errors.QueryCanceled):
                await running
        seen.add(number)
        if len(seen) == 2:
            break
    assert len(seen) == 2


def test_limits_of_pools_and_clients_hold_for_the_whole(two: Dynasty) -> None:
    told = health(two)
    limits = {(pool["pool"], pool["host"]): pool["max"] for pool in told["pools"]}
    assert limits["primary", "primary"] == 11
    assert limits["background", "primary"] == 2
    assert told["max_clients"] == 5000
    metrics = samples(two)
    assert metrics['pgsluice_pool_connections_minimum{database="app",host="primary",pool="primary"}'] == 3


def test_a_worker_uses_no_more_than_its_part_of_a_pool(two: Dynasty, make_key: MakeKey) -> None:
    options = {"options": "-c sluice.pool=background", "autocommit": False}
    with in_each(two.login(*make_key()), **options) as holders:
        for holder in holders:
            holder.execute("SELECT pg_current_xact_id()")
        wait_until(lambda: pool_of(two, "background")["active"] == 2)
        assert pool_of(two, "background")["total"] == 2
        for holder in holders:
            holder.rollback()


def test_metrics_are_sums(two: Dynasty, make_key: MakeKey) -> None:
    login = two.login(*make_key(["read:tasks", "write:tasks"]))
    before = samples(two)
    with in_each(login) as connections:
        for connection in connections:
            for _ in range(25):
                connection.execute("SELECT pg_current_xact_id()")
        assert health(two)["clients"] == 2
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connections[1].execute("CREATE TABLE nobody_may (id integer)")
        after = samples(two)
    counted = (
        'pgsluice_query_duration_seconds_count{database="app",host="primary",intent="write",pool="primary"}'
    )
    assert after[counted] - before.get(counted, 0) == 50
    denied = 'pgsluice_statements_denied_total{code="INSUFFICIENT_PERMISSIONS"}'
    assert after[denied] - before.get(denied, 0) == 1
    assert after["pgsluice_clients"] == 2


@pytest.mark.long
def test_the_dashboard_shows_what_every_worker_did(two: Dynasty, make_key: MakeKey) -> None:
    _, key = make_key(["read:metrics"])
    with in_each(two.login(*make_key(user="board@example.com"))) as connections:
        for connection in connections:
            for _ in range(10):
                connection.execute("SELECT pg_current_xact_id(), 'for the board'")

        def shown() -> int:
            request = urllib.request.Request(
                two.url("/api/status"), headers={"Authorization": f"Bearer {key}"}
            )
            with urllib.request.urlopen(request, timeout=10) as answer:
                recent = json.load(answer)["recent"]["keys"]
            return sum(each["count"] for each in recent if each["user_id"] == "board@example.com")

        wait_until(lambda: shown() >= 20)
        assert shown() == 20


def test_the_console_shows_all_workers_as_one(
    two: Dynasty, both: tuple[psycopg.Connection[Any], ...], make_key: MakeKey
) -> None:
    pids = {connection.info.backend_pid for connection in both}
    with console(two, make_key) as asking:
        before = row(asking, "SHOW STATS_TOTALS", "database", "app")
        for connection in both:
            for _ in range(10):
                connection.execute("SELECT 1")
        assert pids <= {int(each["id"]) for each in rows(asking, "SHOW CLIENTS")}
        after = row(asking, "SHOW STATS_TOTALS", "database", "app")
        assert after["query_count"] - before["query_count"] == 20
        lists = {each["list"]: each["items"] for each in rows(asking, "SHOW LISTS")}
        assert lists["used_clients"] == len(rows(asking, "SHOW CLIENTS"))
        assert lists["used_servers"] == len(rows(asking, "SHOW SERVERS"))
        assert row(asking, "SHOW DATABASES", "name", "app")["pool_size"] > 11
        pools = [each for each in rows(asking, "SHOW POOLS") if each["database"] == "app"]
        assert sum(each["cl_active"] for each in pools) == 2
        assert row(asking, "SHOW CONFIG", "key", "listen.max_clients")["value"] == "5000"


def test_pause_and_resume_hold_for_all_workers(
    two: Dynasty, both: tuple[psycopg.Connection[Any], ...], make_key: MakeKey
) -> None:
    with console(two, make_key) as asking:
        asking.execute("PAUSE app")
        assert pool_of(two, "primary")["total"] == 0
        for connection in both:
            connection.pgconn.send_query(b"SELECT pg_current_xact_id()")
        time.sleep(0.3)
        for connection in both:
            connection.pgconn.consume_input()
            assert connection.pgconn.is_busy(), "it waits for RESUME"
        asking.execute("RESUME app")
        for connection in both:
            while (result := connection.pgconn.get_result()) is not None:
                assert result.status == psycopg.pq.ExecStatus.TUPLES_OK
        with pytest.raises(psycopg.Error, match="not paused"):
            asking.execute("RESUME app")


@pytest.mark.long
def test_a_pause_that_is_cancelled_is_taken_back_everywhere(
    two: Dynasty, both: tuple[psycopg.Connection[Any], ...], make_key: MakeKey
) -> None:
    for connection in both:
        connection.execute("BEGIN")
        connection.execute("SELECT pg_current_xact_id()")
    with console(two, make_key) as asking:
        asking.pgconn.send_query(b"PAUSE")
        time.sleep(0.3)
        asking.cancel_safe(timeout=10)
        result = asking.pgconn.get_result()
        assert result is not None and b"cancel" in result.error_message
        while asking.pgconn.get_result() is not None:
            pass
    for connection in both:
        connection.execute("COMMIT")
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.long
def test_disable_reload_and_kill_client_reach_every_worker(
    two: Dynasty, both: tuple[psycopg.Connection[Any], ...], make_key: MakeKey
) -> None:
    login = two.login(*make_key())
    said = two.errors.read_text().count("configuration read again")
    with console(two, make_key) as asking:
        asking.execute("DISABLE app")
        for _ in range(10):
            with pytest.raises(psycopg.OperationalError):
                login.connect()
        asking.execute("ENABLE app")
        asking.execute("RELOAD")
        assert two.errors.read_text().count("configuration read again") == said + 2
        for connection in both:
            asking.execute(f"KILL_CLIENT {connection.info.backend_pid}".encode())
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")


@pytest.mark.long
def test_a_key_s_rate_limit_holds_over_all_workers(
    two: Dynasty, make_key: MakeKey, installation: Installation
) -> None:
    key_id, key = make_key()
    installation.execute(f"UPDATE sluice.api_keys SET rate_limit_per_minute = 30 WHERE id = '{key_id}'")
    done = 0
    with in_each(two.login(key_id, key)) as connections:
        began = time.monotonic()
        for _ in range(40):
            for connection in connections:
                with contextlib.suppress(psycopg.errors.ConfigurationLimitExceeded):
                    connection.execute("SELECT 1")
                    done += 1
        passed = time.monotonic() - began
    assert 30 <= done <= 31 + passed / 2


@pytest.mark.long
def test_a_reload_shares_new_limits_out(
    installation: Installation, tmp_path: Path, make_key: MakeKey
) -> None:
    with dynasty(installation, tmp_path, {"workers": 2}) as line:
        text = line.config.read_text()
        wanted = text.replace("max: 10", "max: 13").replace("max: 2", "max: 3")
        line.config.write_text(wanted.replace("workers: 2", "workers: 3"))
        os.kill(line.pid, signal.SIGHUP)
        wait_until(lambda: pool_of(line, "primary")["max"] == 13)
        wait_until(lambda: line.errors.read_text().count("a restart is needed for: workers") == 2)
        with console(line, make_key) as asking:
            assert row(asking, "SHOW CONFIG", "key", "databases.app.pools.primary.max")["value"] == "13"
            assert row(asking, "SHOW CONFIG", "key", "workers")["value"] == "2"
            # The second worker would have none.
            line.config.write_text(text.replace("max: 2", "max: 1"))
            with pytest.raises(psycopg.Error, match="each of 2 workers"):
                asking.execute("RELOAD")
        assert pool_of(line, "primary")["max"] == 13


@pytest.mark.long
def test_a_worker_that_is_killed_is_replaced_while_the_other_serves(
    installation: Installation, tmp_path: Path, make_key: MakeKey
) -> None:
    with dynasty(installation, tmp_path, {"workers": 2}) as line:
        with in_each(line.login(*make_key())) as connections:
            for connection in connections:
                connection.execute("SELECT 1")
            numbers = [connection.info.backend_pid & 255 for connection in connections]
            counted = samples(line)["pgsluice_logins_total"]
            victim = line.workers()[1]
            os.kill(victim, signal.SIGKILL)
            lost = connections[1]
            with pytest.raises(psycopg.OperationalError):
                lost.execute("SELECT 1")
            # Those that the kernel gives to the dead worker wait until it is replaced.
            for _ in range(10):
                assert connections[0].execute("SELECT 1").fetchone() == (1,)
                with line.login(*make_key()).connect() as later:
                    assert later.execute("SELECT 1").fetchone() == (1,)
            wait_until(lambda: len(line.workers()) == 2)
            assert victim not in line.workers()
            assert line.said("has ended (exit code -9), and is started again")
        with in_each(line.login(*make_key())) as connections:
            assert [connection.info.backend_pid & 255 for connection in connections] == numbers
        wait_until(
            lambda: samples(line)["pgsluice_logins_total"] >= counted + 10, message="nothing is forgotten"
        )


@pytest.mark.long
def test_a_worker_in_a_dead_one_s_place_is_paused_too(
    installation: Installation, tmp_path: Path, make_key: MakeKey
) -> None:
    with dynasty(installation, tmp_path, {"workers": 2}) as line, console(line, make_key) as asking:
        asking.execute("PAUSE")
        # The first one has the console's client, or the second has.
        victim = line.workers()[1 - (asking.info.backend_pid & 255)]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in line.workers() and len(line.workers()) == 2)
        wait_until(lambda: line.errors.read_text().count("is process") == 3)
        asking.execute("RESUME")


@pytest.mark.parametrize("how", ["SIGTERM", "SHUTDOWN", "SHUTDOWN WAIT_FOR_CLIENTS"])
@pytest.mark.long
def test_all_workers_drain(installation: Installation, tmp_path: Path, make_key: MakeKey, how: str) -> None:
    line = Dynasty(installation, tmp_path, {"workers": 2})
    line.start()
    workers = [psutil.Process(pid) for pid in line.workers()]
    with in_each(line.login(*make_key())) as connections:
        for connection in connections:
            connection.execute("BEGIN")
            connection.execute("SELECT pg_current_xact_id()")
        if how == "SIGTERM":
            line.process.send_signal(signal.SIGTERM)
        else:
            with console(line, make_key) as asking:
                asking.execute(how.encode())
        time.sleep(0.5)
        for connection in connections:
            connection.execute("COMMIT")
    assert line.process.wait(20) == 0, line.tail()
    assert not any(worker.is_running() for worker in workers)
    assert not line.said("Traceback"), line.tail()


@pytest.mark.long
def test_workers_end_with_their_supervisor(installation: Installation, tmp_path: Path) -> None:
    line = Dynasty(installation, tmp_path, {"workers": 2})
    line.start()
    workers = [psutil.Process(pid) for pid in line.workers()]
    line.kill()
    _, left = psutil.wait_procs(workers, 20)
    assert not left


@pytest.mark.long
def test_a_worker_that_can_t_start_ends_the_start(installation: Installation, tmp_path: Path) -> None:
    line = Dynasty(installation, tmp_path, {"workers": 2})
    line.config.write_text(line.config.read_text().replace("user: app_rw", "user: postgres"))
    with pytest.raises(AssertionError, match="pass by row-level security"):
        line.start()
    assert line.process.returncode == 1
    assert not line.said("Traceback"), line.tail()


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.parametrize("after", [3, 1])
def test_workers_are_handed_over(
    installation: Installation, tmp_path: Path, make_key: MakeKey, after: int
) -> None:
    with dynasty(installation, tmp_path, {"workers": 2}) as line:
        login = line.login(*make_key())
        with in_each(login) as staying:
            changed = re.sub(r"max: \d+", "max: 6", line.config.read_text())
            line.config.write_text(changed.replace("workers: 2", f"workers: {after}"))
            for _ in range(2):
                line.hand_over()
                seen = set()
                for _ in range(30):
                    with login.connect() as later:
                        assert later.execute("SELECT 1").fetchone() == (1,)
                        seen.add(later.info.backend_pid & 255)
                assert len(seen) == after
                assert not seen & {connection.info.backend_pid & 255 for connection in staying}
                for connection in staying:
                    assert connection.execute("SELECT 1").fetchone() == (1,)
        wait_until(lambda: len(line.alive()) == 1, message="the old ones end")


@pytest.mark.long
def test_workers_stay_where_their_successors_can_t_serve(
    installation: Installation, tmp_path: Path, make_key: MakeKey
) -> None:
    with dynasty(installation, tmp_path, {"workers": 2}) as line:
        workers = line.workers()
        line.config.write_text(line.config.read_text().replace("user: app_rw", "user: postgres"))
        os.kill(line.pid, signal.SIGUSR2)
        wait_until(lambda: line.said("no handover, this process goes on serving"), 40)
        assert "pass by row-level security" in line.errors.read_text().partition("no handover")[2]
        assert line.workers() == workers
        with in_each(line.login(*make_key())) as connections:
            for connection in connections:
                assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.long
def test_sigterm_during_a_handover_ends_all_workers(installation: Installation, tmp_path: Path) -> None:
    line = Dynasty(installation, tmp_path, {"workers": 2})
    line.start()
    before = set(line.workers())
    os.kill(line.pid, signal.SIGUSR2)
    wait_until(lambda: set(line.workers()) - before, message="a new supervisor starts")
    (new,) = set(line.workers()) - before
    wait_until(lambda: psutil.Process(new).children(), message="its workers start")
    processes = psutil.Process(line.pid).children(recursive=True)
    line.process.send_signal(signal.SIGTERM)
    assert line.process.wait(30) == 0, line.tail()
    _, left = psutil.wait_procs(processes, 20)
    assert not left, line.tail()


def console(line: Dynasty, make_key: MakeKey) -> psycopg.Connection[Any]:
    """Open the console, in any worker."""
    return line.login(*make_key(["admin"])).connect(dbname="pgsluice")


def rows(asking: psycopg.Connection[Any], command: str) -> list[dict[str, Any]]:
    with asking.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        return cursor.execute(command.encode()).fetchall()


def row(asking: psycopg.Connection[Any], command: str, column: str, value: str) -> dict[str, Any]:
    return next(each for each in rows(asking, command) if each[column] == value)


def health(line: Dynasty) -> dict[str, Any]:
    with urllib.request.urlopen(line.url("/health"), timeout=10) as answer:
        told: dict[str, Any] = json.load(answer)
    return told


def pool_of(line: Dynasty, name: str) -> dict[str, Any]:
    """Return what is told of a pool's connections to the primary."""
    found: dict[str, Any] = next(
        pool for pool in health(line)["pools"] if (pool["pool"], pool["host"]) == (name, "primary")
    )
    return found


def samples(line: Dynasty) -> dict[str, float]:
    with urllib.request.urlopen(line.url("/metrics"), timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (each.rpartition(" ") for each in lines if each[0] != "#")
    }
