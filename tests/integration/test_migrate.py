"""The bundled SQL up and down, an application's own on top of it, and what goes wrong on the way."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from proxy import migrate
from proxy.embedded import Cluster
from proxy.migrate import MigrationError
from proxy.migrate.database import LOCK
from proxy.resources import sql_directory
from tests.integration.databases import ALL, database, dump, execute, psql, quiet, values, write_migration
from tests.integration.support import wait_until

pytest_plugins = ["tests.integration.versions"]
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def own_sql(tmp_path: Path) -> Path:
    """Give a copy of the bundled SQL to add migrations to."""
    for file in (sql_directory() / "core").glob("*.sql"):
        copy = tmp_path / "sql" / "core" / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return tmp_path / "sql"


def up(dsn: str, *branches: str, at: Path | None = None) -> list[str]:
    return migrate.up(dsn, branches or ["core"], directories=[at] if at else (), backup=None, say=quiet)


def rollback(dsn: str, version: str, at: Path | None = None) -> list[str]:
    return migrate.rollback(dsn, version, directories=[at] if at else (), backup=None, say=quiet)


def applied(dsn: str, at: Path | None = None) -> list[str]:
    return [each.revision for each in migrate.status(dsn, directories=[at] if at else ()) if each.applied_at]


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_migration_is_one_transaction(empty_cluster: Cluster) -> None:
    dsn = database(empty_cluster, "app")
    nothing = dump(empty_cluster, "app")
    assert up(dsn) == ALL
    assert up(dsn) == []
    # The migration, its version and its checksum are the work of one transaction.
    last = "SELECT xmin::text FROM sluice.{}"
    assert values(dsn, last.format("schema_version")) == values(
        dsn, last.format("schema_checksums WHERE revision = 'core_0006'")
    )
    assert rollback(dsn, ALL[1]) == ALL[:1:-1]
    assert applied(dsn) == ALL[:2]
    assert rollback(dsn, ALL[1]) == []
    assert rollback(dsn, "base") == [ALL[1], ALL[0]]
    assert dump(empty_cluster, "app") == nothing
    assert rollback(dsn, "base") == []


def test_psql_runs_the_plan(empty_cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    done, planned = database(empty_cluster, "done"), database(empty_cluster, "planned")
    nothing = dump(empty_cluster, "planned")
    up(done)
    script = migrate.plan(planned)
    assert migrate.status(planned)[0].applied_at is None

    ran = psql(empty_cluster, planned, script)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert dump(empty_cluster, "planned") == dump(empty_cluster, "done")
    assert up(planned) == []
    assert migrate.validate(planned) == []
    assert migrate.plan(planned) == ""

    again = psql(empty_cluster, planned, script)
    assert again.returncode == 3 and "made for a database in another state" in again.stderr
    assert dump(empty_cluster, "planned") == dump(empty_cluster, "done")

    assert migrate.run("rollback", planned, version=ALL[2], dry_run=True) == 0
    ran = psql(empty_cluster, planned, capsys.readouterr().out)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert applied(planned) == ALL[:3]
    ran = psql(empty_cluster, planned, migrate.plan(planned))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert dump(empty_cluster, "planned") == dump(empty_cluster, "done")
    assert rollback(done, "base") == ALL[::-1]
    ran = psql(empty_cluster, planned, migrate.plan(planned, version="base"))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert dump(empty_cluster, "planned") == nothing


def test_psql_stops_the_plan_at_an_error(empty_cluster: Cluster, own_sql: Path) -> None:
    dsn = database(empty_cluster, "app")
    write_migration(own_sql / "core", "0007_x", "CREATE TABLE sluice.x (); SELECT 1/0 -- without an end")
    write_migration(own_sql / "core", "0008_y", "CREATE TABLE sluice.y ()")
    ran = psql(empty_cluster, dsn, migrate.plan(dsn, directories=[own_sql]))
    assert ran.returncode == 3 and "division by zero" in ran.stderr
    assert applied(dsn, own_sql) == ALL
    assert values(dsn, "SELECT to_regclass('sluice.x') IS NULL AND to_regclass('sluice.y') IS NULL") == [True]


WRONG = {
    "CREATE TABLE sluice.a ();\n\n-- …\nCREATE TABL sluice.b ();": r"core/0007_x\.sql:4: syntax error",
    "CREATE TABLE sluice.a ();\nSELECT 'é',\n nowhere;": (
        r'core/0007_x\.sql:3: column "nowhere" does not exist \(statement 2 of 2, column 2\)'
    ),
    "CREATE TABLE sluice.a ();\nDO $$\nBEGIN RAISE 'no' USING HINT = 'do';\nEND $$;": (
        r"(?s)core/0007_x\.sql:2: no \(statement 2 of 2\)\nHINT: do\nCONTEXT: PL/pgSQL"
    ),
    "CREATE TABLE sluice.a ();\n\n\nSELECT 1/0;": r"core/0007_x\.sql:4: division by zero",
    "CREATE TABLE sluice.a ();\nCOMMIT;\nSELECT 1;": r"core/0007_x\.sql:2: a migration is one transaction",
    "CREATE TABLE sluice.a ();\nCREATE INDEX CONCURRENTLY ON sluice.api_keys (name);": (
        r"core/0007_x\.sql:2: CREATE INDEX CONCURRENTLY cannot run inside a transaction block"
    ),
    "CREATE TABLE sluice.a (i int UNIQUE DEFERRABLE INITIALLY DEFERRED);\nINSERT INTO sluice.a VALUES (1), (1);\n": (
        r"core/0007_x\.sql:2: duplicate key .* \(constraints at its end\)"
    ),
    "CREATE TABLE sluice.a ();\nCOPY sluice.a FROM STDIN;": r"core/0007_x\.sql:2: a migration has nothing to COPY",
}


def test_a_wrong_migration_leaves_nothing_and_names_its_line(empty_cluster: Cluster, own_sql: Path) -> None:
    dsn = database(empty_cluster, "app")
    up(dsn, at=own_sql)
    before = dump(empty_cluster, "app")
    for text, message in WRONG.items():
        write_migration(own_sql / "core", "0007_x", text)
        with pytest.raises(MigrationError, match=message) as raised:
            up(dsn, at=own_sql)
        assert raised.value.file == own_sql / "core" / "0007_x.sql"
        assert dump(empty_cluster, "app") == before
    write_migration(own_sql / "core", "0007_x", "CREATE TABLE sluice.a (percent text DEFAULT '%s%%');")
    assert up(dsn, at=own_sql) == ["core_0007"]
    assert values(dsn, "INSERT INTO sluice.a DEFAULT VALUES RETURNING percent") == ["%s%%"]
    write_migration(own_sql / "core", "0007_x", "", "DROP TABLE sluice.a; SELECT 1/0;")
    with pytest.raises(MigrationError, match=r"core/0007_x\.rollback\.sql:1: division"):
        rollback(dsn, "core_0006", own_sql)
    assert values(dsn, "SELECT count(*) FROM sluice.a") == [1]


def test_what_one_migration_sets_is_not_there_for_the_next(empty_cluster: Cluster, own_sql: Path) -> None:
    dsn = database(empty_cluster, "app")
    write_migration(own_sql / "core", "0007_x", "SET ROLE sluice_owner; SET search_path = sluice;")
    write_migration(
        own_sql / "core",
        "0008_y",
        "CREATE TABLE sluice.y AS SELECT current_user AS who, current_setting('search_path') AS path;",
    )
    assert up(dsn, at=own_sql)[-1] == "core_0008"
    assert values(dsn, "SELECT who || ', ' || path FROM sluice.y") == ["postgres, pg_catalog, pg_temp"]


def test_a_branch_brings_what_it_depends_on(empty_cluster: Cluster, own_sql: Path) -> None:
    dsn = database(empty_cluster, "app")
    first = "-- depends: core_0003\nCREATE TABLE sluice.first ();"
    write_migration(own_sql / "extra", "0001_first", first, "DROP TABLE sluice.first;")
    write_migration(
        own_sql / "extra", "0002_second", "CREATE TABLE sluice.second ();", "DROP TABLE sluice.second;"
    )
    assert up(dsn, "extra", at=own_sql) == [*ALL[:3], "extra_0001", "extra_0002"]
    assert migrate.validate(dsn, directories=[own_sql]) == []
    assert up(dsn, "core", "extra", at=own_sql) == ALL[3:]
    assert migrate.validate(dsn, directories=[own_sql]) == []
    assert up(dsn, "extra", "core", at=own_sql) == []
    assert rollback(dsn, "extra_0001", own_sql) == ["extra_0002"]
    undone = rollback(dsn, "core_0002", own_sql)
    assert set(undone) == {"extra_0001", "core_0006", "core_0005", "core_0004", "core_0003"}
    assert undone.index("extra_0001") < undone.index("core_0003")
    assert up(dsn, "core", "extra", at=own_sql)[-2:] == ["extra_0001", "extra_0002"]
    assert rollback(dsn, "extra@base", own_sql) == ["extra_0002", "extra_0001"]
    assert applied(dsn, own_sql) == ALL
    assert migrate.validate(dsn, directories=[own_sql]) == []
    assert up(dsn, "extra", at=own_sql) == ["extra_0001", "extra_0002"]
    assert len(rollback(dsn, "base", own_sql)) == 8
    assert values(dsn, "SELECT nspname FROM pg_namespace WHERE nspname = 'sluice'") == []
    with pytest.raises(MigrationError, match="no branch other; there are core, extra"):
        up(dsn, "other", at=own_sql)


def test_a_directory_of_ones_own_stands_on_the_bundled_sql(
    empty_cluster: Cluster, own_sql: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dsn, own = database(empty_cluster, "app"), tmp_path / "migrations"
    assert migrate.run("create", "", name="First", branches=("notes",), directory=own) == 0
    capsys.readouterr()
    assert migrate.run("create", "", name="Second one!", directory=own, as_json=True) == 0
    second = own / "notes" / "0002_second_one.sql"
    assert printed(capsys) == [str(second), str(second.with_suffix(".rollback.sql"))]
    assert migrate.run("up", dsn, directory=own, as_json=True) == 0
    done = printed(capsys)
    assert [each["revision"] for each in done["applied"]] == [*ALL, "notes_0001", "notes_0002"]
    assert all(each["milliseconds"] >= 0 for each in done["applied"])
    assert (done["backup"], done["error"]) == (None, None)

    # Without its directory nothing of it is touched, and nothing below it taken away.
    assert up(dsn) == []
    write_migration(
        own_sql / "core", "0007_later", "CREATE TABLE sluice.later ();", "DROP TABLE sluice.later;"
    )
    assert up(dsn, at=own_sql) == ["core_0007"]
    with pytest.raises(MigrationError, match=r"notes_0001: applied, but .* missing; name its --directory"):
        rollback(dsn, "core_0006", own_sql)
    assert migrate.run("validate", dsn, as_json=True) == 1
    assert [each["revision"] for each in printed(capsys)["problems"]] == [
        "notes_0001",
        "notes_0002",
        "core_0007",
    ]
    assert migrate.validate(dsn, directories=[own_sql, own]) == []
    undone = migrate.rollback(dsn, "core_0006", directories=[own_sql, own], backup=None, say=quiet)
    assert undone == ["core_0007"]
    undone = migrate.rollback(dsn, "notes@base", directories=[own_sql, own], backup=None, say=quiet)
    assert undone == ["notes_0002", "notes_0001"]
    assert applied(dsn) == ALL


def test_up_goes_on_with_every_branch_that_was_begun(
    empty_cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    dsn = database(empty_cluster, "app")
    assert migrate.run("up", dsn) == 0
    assert applied(dsn) == ALL
    assert migrate.run("up", dsn, branches=["taskmaster"]) == 0
    every = applied(dsn)
    assert migrate.run("rollback", dsn, version="taskmaster_0008") == 0
    assert len(applied(dsn)) < len(every)
    assert migrate.run("up", dsn) == 0
    assert applied(dsn) == every
    capsys.readouterr()
    assert migrate.run("up", dsn, dry_run=True) == 0
    assert capsys.readouterr().out == ""


def test_drift_is_found(empty_cluster: Cluster, own_sql: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dsn = database(empty_cluster, "app")
    first, second = migrate.create("Add a column!", "core", directories=[own_sql])
    assert (first.name, second.name) == ("0007_add_a_column.sql", "0007_add_a_column.rollback.sql")
    assert [each.applied_at for each in migrate.status(dsn, directories=[own_sql])] == [None] * 7
    up(dsn, at=own_sql)
    assert migrate.validate(dsn, directories=[own_sql]) == []
    changed = own_sql / "core" / "0002_identity.sql"
    changed.write_text(changed.read_text() + "-- changed\n")
    for file in (own_sql / "core").glob("0003_api_keys*"):
        file.rename(file.with_name(file.name.replace("api_keys", "keys")))
    first.unlink()
    second.unlink()

    def found() -> dict[str, str]:
        return {each.revision: each.problem for each in migrate.validate(dsn, directories=[own_sql])}

    told = {
        "core_0002": "changed since it was applied",
        "core_0003": "its file was called 0003_api_keys.sql when it was applied",
        "core_0007": "applied, but its file is missing",
    }
    assert found() == told
    with pytest.raises(MigrationError, match="core_0007: applied, but its file is missing"):
        up(dsn, at=own_sql)
    for refused in ("core_0009", "nothing", "core", "core_00", "core@core_0002"):
        with pytest.raises(MigrationError, match=f"{refused} isn't applied"):
            migrate.rollback(dsn, refused, backup=None, directories=[sql_with_sixth(own_sql)], say=quiet)
    # The command itself looks at the bundled files, which know nothing of the sixth.
    assert migrate.run("validate", dsn, as_json=True) == 1
    answer = printed(capsys)
    assert answer["ok"] is False
    assert [(each["revision"], each["problem"]) for each in answer["problems"]] == [
        ("core_0007", "applied, but its file is missing")
    ]
    assert migrate.run("validate", dsn) == 1
    assert capsys.readouterr().out == "core_0007: applied, but its file is missing\n"
    assert migrate.run("status", dsn) == 0
    assert capsys.readouterr().out.count("core_000") == 7
    assert migrate.run("status", dsn, as_json=True) == 0
    assert printed(capsys)[0]["revision"] == "core_0001"
    with pytest.raises(MigrationError, match="core_0007"):
        migrate.run("rollback", dsn, version="core_0003", dry_run=True)


def sql_with_sixth(directory: Path) -> Path:
    write_migration(directory / "core", "0007_add_a_column", "SELECT 1;")
    return directory


def test_a_wrong_order_is_found(empty_cluster: Cluster, own_sql: Path) -> None:
    dsn = database(empty_cluster, "app")
    write_migration(own_sql / "core", "0008_late", "SELECT 1;")
    assert up(dsn, at=own_sql) == [*ALL, "core_0008"]
    write_migration(own_sql / "core", "0007_between", "SELECT 1;")

    def found() -> dict[str, str]:
        return {each.revision: each.problem for each in migrate.validate(dsn, directories=[own_sql])}

    assert found() == {"core_0008": "applied without core_0007, which comes before it"}
    with pytest.raises(MigrationError, match="core_0008: applied without core_0007"):
        up(dsn, at=own_sql)
    for file in (own_sql / "core").glob("0007_between*"):
        file.unlink()
    assert found() == {}
    swap = "UPDATE sluice.schema_checksums SET applied_at = applied_at + {} WHERE revision = 'core_0006'"
    execute(dsn, swap.format("interval '1 day'"))
    assert found() == {"core_0008": "applied before core_0006, which it needs"}
    execute(
        dsn, swap.format("interval '-1 day'"), "UPDATE sluice.schema_version SET version_num = 'core_0002'"
    )
    assert set(found()) == {"core_0002", "core_0008"}
    assert set(found().values()) == {"not what sluice.schema_version says"}


def test_two_migrations_at_once_take_turns(empty_cluster: Cluster) -> None:
    dsn = database(empty_cluster, "app")
    results: list[list[str]] = []
    threads = [threading.Thread(target=lambda: results.append(up(dsn))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [[], [], ALL]


def test_whoever_waits_says_for_whom(empty_cluster: Cluster) -> None:
    dsn = database(empty_cluster, "app")
    said: list[str] = []
    thread = threading.Thread(target=lambda: migrate.up(dsn, backup=None, say=said.append))
    with psycopg.connect(dsn, autocommit=True, application_name="somebody") as other:
        other.execute(f"SELECT pg_advisory_lock({LOCK})")
        thread.start()
        wait_until(lambda: said, message="the second one says that it waits")
        process = other.info.backend_pid
        assert said[0].startswith(
            f"waiting for another migration to end: that of process {process} (somebody)"
        )
        assert "user postgres from 127.0.0.1 since " in said[0]
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgsluice migrate'"
        assert values(dsn, waiting + " AND backend_xmin IS NULL AND wait_event = 'advisory'") in ([0], [1])
        assert len(said) == 1
        other.execute(f"SELECT pg_advisory_unlock({LOCK})")
        thread.join()
    assert len(said) == 1 + len(ALL)


def test_an_error_as_json_tells_what_was_done_before_it(
    empty_cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dsn, own = database(empty_cluster, "app"), tmp_path / "own"
    write_migration(own / "notes", "0001_wrong", "-- depends: core_0004\nSELECT 1;\nSELECT nothing;")
    assert migrate.run("up", dsn, directory=own, as_json=True) == 1
    answer = printed(capsys)
    assert [each["revision"] for each in answer["applied"]] == ALL
    assert answer["error"]["file"] == str(own / "notes" / "0001_wrong.sql")
    assert answer["error"]["line"] == 3
    assert 'column "nothing" does not exist' in answer["error"]["message"]


def test_a_terminal_is_shown_which_statement_runs(empty_cluster: Cluster, tmp_path: Path) -> None:
    dsn, own = database(empty_cluster, "app"), tmp_path / "own"
    slow = "-- depends: core_0004\nCREATE SCHEMA notes;\n\nSELECT pg_sleep(1000);"
    write_migration(own / "notes", "0001_slow", slow)
    command = [sys.executable, "-m", "proxy", "migrate", "up", "--dsn", dsn, "--directory", str(own)]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    shown = b""
    while b"notes_0001: statement 2 of 2, line 4: SELECT pg_sleep(1000)" not in shown:
        shown += os.read(ours, 4096)
    execute(
        dsn,
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgsluice migrate'",
    )
    said, _ = process.communicate(timeout=30)
    os.close(ours)
    assert process.returncode == 1
    # Lines for good go to standard output, one for each migration.
    assert [line.split(":")[0] for line in said.splitlines() if "applied in" in line] == [
        "core_0001 roles",
        "core_0002 identity",
        "core_0003 api_keys",
        "core_0004 access_log",
        "core_0005 read_access_log",
        "core_0006 result_cache",
    ]
    assert "\x1b" not in said


def test_ones_own_options_count_and_timeouts_do_not(
    empty_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    text = (
        "-- depends: core_0004\nCREATE SCHEMA notes; CREATE TABLE notes.a AS"
        " SELECT current_setting('work_mem') || current_setting('statement_timeout') AS found;"
    )
    write_migration(own / "notes", "0001_a", text, "DROP SCHEMA notes CASCADE;")
    dsn = database(empty_cluster, "app")
    execute(dsn, "ALTER DATABASE app SET statement_timeout = '5min'")
    both = [sql_directory(), own]
    with_options = make_conninfo(dsn, options="-c work_mem=5MB")
    migrate.up(with_options, ["notes"], directories=both, backup=None, say=quiet)
    assert values(dsn, "SELECT found FROM notes.a") == ["5MB0"]
    migrate.rollback(dsn, "notes@base", directories=both, backup=None, say=quiet)
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=6MB -c search_path=notes")
    migrate.up(dsn, ["notes"], directories=both, backup=None, say=quiet)
    assert values(dsn, "SELECT found FROM notes.a") == ["6MB0"]


# Without a superuser.


def boss(cluster: Cluster, attributes: str) -> str:
    execute(cluster.primary.dsn(), f"CREATE ROLE boss LOGIN {attributes} PASSWORD 'boss'")
    return cluster.primary.dsn("app", "boss", "boss")


@pytest.mark.long
def test_an_owner_who_may_create_roles_can_migrate(empty_cluster: Cluster) -> None:
    admin = database(empty_cluster, "app")
    dsn = boss(empty_cluster, "CREATEROLE")
    execute(admin, "ALTER DATABASE app OWNER TO boss")
    nothing = dump(empty_cluster, "app")
    assert up(dsn) == ALL
    assert rollback(admin, ALL[1]) == ALL[:1:-1]
    assert up(admin) == ALL[2:]
    made = up(dsn, "taskmaster")
    # What nothing depends on goes first.
    assert rollback(dsn, "base") == [ALL[5], ALL[4], *made[::-1], *ALL[3::-1]]
    assert dump(empty_cluster, "app") == nothing
    # A superuser began it: whoever is a member of its roles may go on.
    assert up(admin) == ALL
    with pytest.raises(MigrationError, match="GRANT sluice_control, sluice_definer, sluice_owner TO boss;"):
        rollback(dsn, ALL[2])
    execute(admin, "GRANT sluice_owner, sluice_definer, sluice_control TO boss")
    assert rollback(dsn, ALL[2]) == ALL[:2:-1]
    assert up(dsn) == ALL[3:]


def test_all_that_a_role_lacks_is_told_at_once(empty_cluster: Cluster) -> None:
    admin = database(empty_cluster, "app")
    database(empty_cluster, "other")
    dsn = boss(empty_cluster, "")
    nothing = dump(empty_cluster, "app")
    with pytest.raises(MigrationError, match="boss may not migrate database app") as raised:
        up(dsn)
    assert str(raised.value).splitlines()[1:] == [
        "GRANT CREATE ON DATABASE app TO boss;",
        "ALTER ROLE boss CREATEROLE;",
        "GRANT CREATE ON SCHEMA public TO boss;",
    ]
    assert dump(empty_cluster, "app") == nothing
    # The statements that are told are enough, also where another database has made the roles before.
    up(empty_cluster.primary.dsn("other"))
    with pytest.raises(MigrationError) as again:
        up(dsn)
    execute(admin, *str(again.value).splitlines()[1:])
    assert up(dsn) == ALL
