"""`pgsluice logs` on the table, under the control login."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from typer.testing import CliRunner, Result

from proxy.cli import app
from tests.integration.conftest import MakeKey
from tests.integration.support import Installation, Login, Proxy, configuration, wait_until


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["logs", *arguments], env={"COLUMNS": "200"})


def found(proxy: Proxy, *arguments: str) -> list[dict[str, Any]]:
    shown = run("-c", str(proxy.config), "--json", *arguments)
    assert shown.exit_code == 0, shown.output
    return [json.loads(line) for line in shown.stdout.splitlines()]


def test_the_table_shows_what_a_key_did(proxy: Proxy, make_key: MakeKey) -> None:
    key_id, key = make_key(["read:tasks"], "logs@example.com")
    with proxy.login(key_id, key).connect() as connection:
        connection.execute("SELECT 'one', pg_sleep(0.3)")
        with pytest.raises(psycopg.errors.DivisionByZero):
            connection.execute("SELECT 1/0")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DROP TABLE nothing")
    by_key = ("--key", key_id)
    wait_until(lambda: len(found(proxy, *by_key)) == 4, message="four rows")

    records = found(proxy, *by_key)
    assert [each["event"] for each in records] == ["login", "statement", "statement", "denied"]
    assert [each["at"] for each in records] == sorted(each["at"] for each in records)
    written = [json.loads(line) for line in proxy.output.read_text().splitlines() if key_id in line]
    assert records == written, "what the table holds is printed as the lines on standard output are"

    def statements(*arguments: str) -> list[str]:
        return [each.get("statement", "") for each in found(proxy, *by_key, *arguments)]

    assert statements("--slower", "250ms") == ["SELECT $1, pg_sleep($2)"]
    assert statements("--sqlstate", "22") == statements("--sqlstate", "22012") == ["SELECT $1/$2"]
    assert statements("--code", "INSUFFICIENT_PERMISSIONS") == ["DROP TABLE nothing"]
    assert statements("--intent", "ddl") == statements("--event", "denied") == ["DROP TABLE nothing"]
    assert len(statements("--user", "logs@example.com")) == 4
    assert statements("--user", "other@example.com") == []
    assert statements("--limit", "1") == ["DROP TABLE nothing"], "the newest"
    assert statements("--since", "0", "--until", "2100-01-01") == []
    assert statements("--until", "1h") == []
    assert statements("--since", "2000-01-01") == statements()

    shown = run("-c", str(proxy.config), *by_key)
    assert shown.exit_code == 0, shown.output
    titles, *rows = shown.stdout.splitlines()
    assert titles.split()[:2] == ["at", "(UTC)"] and len(rows) == 4
    assert "logs@example.com" in rows[1] and "SELECT $1, pg_sleep($2)" in rows[1]


def test_old_rows_are_found_when_they_are_asked_for(
    proxy: Proxy, installation: Installation, make_key: MakeKey
) -> None:
    key_id, _ = make_key()
    installation.execute("SELECT sluice.ensure_partitions(0, 3)")
    for hours in (1, 5, 23, 49):
        installation.execute(
            "INSERT INTO sluice.api_access_logs (id, at, event, key_id, statement) SELECT gen_random_uuid(),"
            f" now() - interval '{hours} hours', 'statement', '{key_id}', '{hours} hours ago'"
        )
    installation.replicated()
    by_key = ("--key", key_id)
    assert [each["statement"][:2] for each in found(proxy, *by_key)] == ["23", "5 ", "1 "]
    assert [each["statement"][:2] for each in found(proxy, *by_key, "-n", "2")] == ["5 ", "1 "]
    assert [each["statement"][:2] for each in found(proxy, *by_key, "--since", "3d", "--until", "6h")] == [
        "49",
        "23",
    ]
    shown = run("-c", str(proxy.config), "--key", "ctm_nobodyatall0")
    assert (shown.exit_code, shown.stdout) == (0, "")
    assert shown.stderr == "pgsluice: nothing in the last day; --since 30d looks further back\n"


def test_partitions_that_are_too_old_are_not_read(installation: Installation) -> None:
    installation.execute("SELECT sluice.ensure_partitions(0, 3)")
    with installation.role("sluice_control").connect() as control:
        plan = control.execute(
            "EXPLAIN SELECT id FROM sluice.api_access_logs WHERE at >= %s AND key_id = 'x' ORDER BY at DESC, id DESC",
            (datetime.now(UTC) - timedelta(minutes=1),),
        ).fetchall()
    read = set(re.findall(r" on (api_access_logs_\d{8})", "\n".join(line for (line,) in plan)))
    today = f"api_access_logs_{datetime.now(UTC):%Y%m%d}"
    assert today in read
    assert min(read) >= f"api_access_logs_{datetime.now(UTC) - timedelta(minutes=1):%Y%m%d}"


def test_the_control_login_may_read_the_log_and_nothing_changes_it(installation: Installation) -> None:
    with installation.role("sluice_control").connect() as control:
        control.execute("SELECT count(*) FROM sluice.api_access_logs")
        for statement in (
            "DELETE FROM sluice.api_access_logs",
            "UPDATE sluice.api_access_logs SET event = 'x'",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                control.execute(statement)


def test_a_login_that_may_not_read_is_told_what_to_do(installation: Installation) -> None:
    role = installation.role("app_ro")
    dsn = (
        f"host={role.host} port={role.port} user={role.user} password={role.password} dbname={role.database}"
    )
    shown = run("--dsn", dsn)
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert "this login may not read sluice.api_access_logs" in shown.stderr
    shown = run("--dsn", installation.cluster.primary.dsn("postgres"))
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert "this database holds no sluice.api_access_logs" in shown.stderr


def test_a_replica_answers_where_no_primary_does(installation: Installation, tmp_path: Path) -> None:
    content = configuration(installation, 6432, 9432, tmp_path)
    hosts = content["databases"]["app"]["hosts"]
    hosts[0]["port"] = 1
    config = tmp_path / "pgsluice.yaml"
    config.write_text(yaml.safe_dump(content))
    assert run("-c", str(config), "--limit", "1").exit_code == 0


def sleep(login: Login, seconds: float) -> None:
    with login.connect() as connection:
        connection.execute(f"SELECT pg_sleep({seconds})")


@pytest.mark.long
def test_the_table_is_followed(proxy: Proxy, make_key: MakeKey) -> None:
    key_id, key = make_key()
    login = proxy.login(key_id, key)
    with login.connect() as connection:
        connection.execute("SELECT 'before'")
    wait_until(lambda: len(found(proxy, "--key", key_id)) == 2, message="two rows")
    options = ["-c", str(proxy.config), "--json", "-f", "--key", key_id, "-n", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "logs", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    with process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "statement", "the newest of the two alone"
        with login.connect() as quick, ThreadPoolExecutor(1) as threads:
            slow = threads.submit(sleep, login, 2.5)
            json.loads(process.stdout.readline())
            json.loads(process.stdout.readline())
            quick.execute("SELECT 'quick'")
            assert json.loads(process.stdout.readline())["statement"] == "SELECT $1"
            # It began before the other, and comes behind it: nobody can go by the times of rows alone.
            assert json.loads(process.stdout.readline())["statement"] == "SELECT pg_sleep($1)"
            slow.result()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == 0
