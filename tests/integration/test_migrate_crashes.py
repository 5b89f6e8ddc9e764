"""Killed at any point, the program or its backend: `up` goes on from what is left, and no lock remains."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from proxy import migrate
from proxy.embedded import Cluster, scratch_directory
from proxy.migrate.database import LOCK
from proxy.resources import sql_directory
from tests.integration.databases import ALL, database, dump, execute, quiet, values, write_migration
from tests.integration.support import wait_until

pytest_plugins = ["tests.integration.versions"]
pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

HELD = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid::bigint = {LOCK & 0xFFFFFFFF}"
OURS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgsluice migrate'"
SLOW = f"{OURS} AND query LIKE '%pg_sleep(1000)%'"
COLUMNS = """
SELECT attrelid::regclass::text || '.' || attname FROM pg_attribute
WHERE attrelid >= 16384 AND attnum > 0 AND NOT attisdropped ORDER BY 1
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Give two migrations on top of core, of two statements each."""
    own = tmp_path / "own"
    first = "-- depends: core_0004\nCREATE SCHEMA notes; CREATE TABLE notes.a (i int);"
    write_migration(own / "notes", "0001_first", first, "DROP TABLE notes.a; DROP SCHEMA notes;")
    write_migration(
        own / "notes",
        "0002_more",
        "ALTER TABLE notes.a ADD j int; CREATE TABLE notes.b ();",
        "DROP TABLE notes.b; ALTER TABLE notes.a DROP j;",
    )
    return own


def up(dsn: str, *own: Path) -> list[str]:
    branches = ["core", *(["notes"] if own else [])]
    return migrate.up(dsn, branches, directories=[sql_directory(), *own], backup=None, say=quiet)


def rollback(dsn: str, version: str, *own: Path) -> list[str]:
    return migrate.rollback(dsn, version, directories=[sql_directory(), *own], backup=None, say=quiet)


def killed(action: Callable[[], object], point: int) -> bool:
    """Do `action` in a child that kills itself before the `point`th call to the server; False if it ended first."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _die_at(point)
            action()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def _die_at(point: int) -> None:
    """Count what goes to the server: statements, and what ends a transaction."""
    calls = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    psycopg.Cursor.execute = counted(psycopg.Cursor.execute)  # type: ignore[method-assign]
    psycopg.Connection.commit = counted(psycopg.Connection.commit)  # type: ignore[method-assign]
    psycopg.Connection.close = counted(psycopg.Connection.close)  # type: ignore[method-assign]


def lock_is_gone(dsn: str) -> None:
    wait_until(lambda: values(dsn, HELD) == [0], message="the lock goes with its connection")


def sound(dsn: str, *own: Path) -> bool:
    return migrate.validate(dsn, directories=[sql_directory(), *own]) == []


def test_killed_at_any_point_up_goes_on(empty_cluster: Cluster, own: Path) -> None:
    dsn = database(empty_cluster, "app")
    up(dsn)
    core = dump(empty_cluster, "app")
    assert up(dsn, own) == ["notes_0001", "notes_0002"]
    full, columns = dump(empty_cluster, "app"), values(dsn, COLUMNS)
    rollback(dsn, "notes@base", own)
    point = 1
    while killed(lambda: up(dsn, own), point):
        lock_is_gone(dsn)
        assert sound(dsn, own), f"after point {point}"
        up(dsn, own)
        # pg_dump tells more, and takes longer.
        assert values(dsn, COLUMNS) == columns, f"after point {point}"
        assert point % 8 or dump(empty_cluster, "app") == full, f"after point {point}"
        rollback(dsn, "notes@base", own)
        point += 1
    assert point > 20
    rollback(dsn, "notes@base", own)
    assert dump(empty_cluster, "app") == core


def test_killed_at_any_point_a_rollback_goes_on(empty_cluster: Cluster, own: Path) -> None:
    dsn = database(empty_cluster, "app")
    nothing = dump(empty_cluster, "app")
    up(dsn, own)
    point = 1
    # Each takes up where the one before was killed, so that all of it is gone through.
    while killed(lambda: rollback(dsn, "base", own), point):
        lock_is_gone(dsn)
        assert sound(dsn, own), f"after point {point}"
        point += 3
    rollback(dsn, "base", own)
    assert dump(empty_cluster, "app") == nothing


def test_killed_at_many_points_the_first_up_goes_on(empty_cluster: Cluster) -> None:
    whole = database(empty_cluster, "whole")
    up(whole)
    full = dump(empty_cluster, "whole")
    dsn = database(empty_cluster, "app")
    # The first calls one by one, then with steps: what makes the schema and the table is in the first.
    for point in (*range(1, 20), *range(23, 160, 17)):
        killed(lambda: up(dsn), point)
        lock_is_gone(dsn)
        assert sound(dsn), f"after point {point}"
    up(dsn)
    assert dump(empty_cluster, "app") == full


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """Give a migration whose second statement takes long, until `done` calls it off."""
    own = tmp_path / "slow"
    text = "-- depends: core_0004\nCREATE SCHEMA notes;\nSELECT pg_sleep(1000);"
    write_migration(own / "notes", "0001_slow", text, "DROP SCHEMA notes;")
    return own


def done(own: Path) -> None:
    write_migration(
        own / "notes", "0001_slow", "-- depends: core_0004\nCREATE SCHEMA notes;", "DROP SCHEMA notes;"
    )


def started(dsn: str, own: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "proxy", "migrate", "up", "--dsn", dsn, "--directory", str(own)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def at_work(dsn: str) -> int:
    """Wait for the backend that runs the slow statement, and return its process id."""
    found = wait_until(lambda: values(dsn, SLOW), 60.0)
    return int(found[0])


def test_the_program_killed_while_a_statement_runs(empty_cluster: Cluster, slow: Path) -> None:
    dsn = database(empty_cluster, "app")
    process = started(dsn, slow)
    at_work(dsn)
    assert values(dsn, HELD) == [1]
    process.kill()
    process.communicate()
    # The statement would take 1,000 seconds: the server looks after its client.
    lock_is_gone(dsn)
    assert values(dsn, "SELECT to_regnamespace('notes')") == [None]
    assert sound(dsn, slow)
    done(slow)
    assert up(dsn, slow) == ["notes_0001"]


def test_an_interrupted_migration_leaves_nothing(empty_cluster: Cluster, slow: Path) -> None:
    dsn = database(empty_cluster, "app")
    process = started(dsn, slow)
    at_work(dsn)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode not in (0, None) and "Traceback" not in errors
    lock_is_gone(dsn)
    assert values(dsn, "SELECT to_regnamespace('notes')") == [None]
    assert sound(dsn, slow)


def test_a_killed_backup_bears_no_backups_name(empty_cluster: Cluster, tmp_path: Path) -> None:
    dsn = database(empty_cluster, "app")
    up(dsn)
    (tmp_path / "backups").mkdir()
    # Like a long one: it tells its version, writes something, and goes on until its input's owner is gone.
    pg_dump = tmp_path / "pg_dump"
    major = int(values(dsn, "SHOW server_version_num")[0]) // 10000
    pg_dump.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "pg_dump (PostgreSQL) {major}.1" && exit\n'
        "echo PGDMP\nwhile kill -0 $PPID; do sleep 0.05; done\n"
    )
    pg_dump.chmod(0o755)
    command = [sys.executable, "-m", "proxy", "migrate", "rollback", "base", "--dsn", dsn]
    options = ["--pg-dump", str(pg_dump), "--backup-directory", str(tmp_path / "backups")]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def written() -> list[Path]:
        return [file for file in (tmp_path / "backups").iterdir() if file.stat().st_size]

    (begun,) = wait_until(written, 60.0, "a backup is begun")
    assert (begun.suffix, begun.stat().st_mode & 0o777) == (".partial", 0o600)
    process.kill()
    process.communicate()
    lock_is_gone(dsn)
    assert sound(dsn)
    assert list((tmp_path / "backups").glob("*.dump")) == []


def test_whoever_waits_goes_on_when_the_other_is_killed(empty_cluster: Cluster, slow: Path) -> None:
    dsn = database(empty_cluster, "app")
    first = started(dsn, slow)
    at_work(dsn)
    done(slow)
    second = started(dsn, slow)
    wait_until(lambda: values(dsn, HELD) == [2], 60.0, "the second waits for the lock")
    first.kill()
    first.communicate()
    said, errors = second.communicate(timeout=50)
    assert (second.returncode, errors) == (0, "")
    assert said.startswith("waiting for another migration to end: that of process ")
    assert "notes_0001 slow: applied in " in said
    assert sound(dsn, slow)


def test_the_backend_ended_while_a_statement_runs(empty_cluster: Cluster, slow: Path) -> None:
    dsn = database(empty_cluster, "app")
    process = started(dsn, slow)
    execute(dsn, f"SELECT pg_terminate_backend({at_work(dsn)})")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "notes/0001_slow.sql:3: terminating connection due to administrator command" in errors
    lock_is_gone(dsn)
    assert sound(dsn, slow)
    done(slow)
    assert up(dsn, slow) == ["notes_0001"]


@pytest.fixture
def own_cluster(bare_cluster: Cluster) -> Iterator[Cluster]:
    """Give a cluster of this test's own, of each version: its backends are killed, and all others with them."""
    directory = scratch_directory("pgsluice-crash-")
    with Cluster(directory, replicas=0, bin_dir=bare_cluster.bin_dir) as cluster:
        yield cluster
    shutil.rmtree(directory)


def test_the_backend_killed_while_a_statement_runs(own_cluster: Cluster, slow: Path) -> None:
    dsn = database(own_cluster, "app")
    process = started(dsn, slow)
    os.kill(at_work(dsn), signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.startswith("pgsluice: ") and "Traceback" not in errors

    def answers() -> bool:
        try:
            return values(dsn, HELD) == [0]
        except psycopg.OperationalError:
            return False

    wait_until(answers, 40.0, "the server recovers")
    assert sound(dsn, slow)
    assert [each.revision for each in migrate.status(dsn) if each.applied_at] == ALL
    done(slow)
    assert up(dsn, slow) == ["notes_0001"]


def test_only_what_has_committed_is_told(
    empty_cluster: Cluster, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn, said = database(empty_cluster, "app"), list[str]()
    up(dsn)
    commit = psycopg.Connection.commit

    def losing(connection: psycopg.Connection[Any]) -> None:
        """Lose the connection where the second of the two commits, which made this table."""
        cursor = connection.cursor()
        if cursor.execute("SELECT to_regclass('notes.b') IS NOT NULL").fetchone() == (True,):
            execute(dsn, f"SELECT pg_terminate_backend({connection.info.backend_pid})")
        commit(connection)

    monkeypatch.setattr(psycopg.Connection, "commit", losing)
    with pytest.raises(migrate.MigrationError, match=r"terminat|closed"):
        migrate.up(dsn, ["notes"], directories=[sql_directory(), own], backup=None, say=said.append)
    monkeypatch.undo()
    assert [line.split(":")[0] for line in said] == ["notes_0001 first"]
    lock_is_gone(dsn)
    assert sound(dsn, own)
    assert up(dsn, own) == ["notes_0002"]
