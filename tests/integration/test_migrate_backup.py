"""A backup before anything is destroyed, and its refusal where it can't be made."""

from __future__ import annotations

import json
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from proxy import migrate
from proxy.cli import app
from proxy.embedded import Cluster, bundled_bin_dir
from proxy.migrate import Backup, MigrationError
from proxy.resources import sql_directory
from tests.integration.databases import ALL, database, dump, execute, quiet, values, write_migration
from tests.integration.support import DEBIAN

pytest_plugins = ["tests.integration.versions"]
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def backup(empty_cluster: Cluster, tmp_path: Path) -> Backup:
    """Give a backup by the server's own pg_dump, into a directory that is empty before."""
    (tmp_path / "backups").mkdir()
    return Backup(tmp_path / "backups", str(empty_cluster.bin_dir / "pg_dump"))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Give an application's own migrations, of which the third destroys data."""
    own = tmp_path / "own"
    first = "-- depends: core_0004\nCREATE SCHEMA notes; CREATE TABLE notes.a (i int);"
    write_migration(own / "notes", "0001_first", first, "DROP TABLE notes.a; DROP SCHEMA notes;")
    write_migration(
        own / "notes", "0002_rows", "INSERT INTO notes.a VALUES (1), (2);", "DELETE FROM notes.a;"
    )
    write_migration(own / "notes", "0003_gone", "\nDROP TABLE notes.a;", "CREATE TABLE notes.a (i int);")
    return own


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["migrate", *arguments], env={"COLUMNS": "200", "PGSLUICE_PG_DUMP": ""})


def nestless(lines: list[str]) -> list[str]:
    return [line.translate({ord("("): None, ord(")"): None}) for line in lines]


def restore(cluster: Cluster, file: Path, dsn: str) -> None:
    program = str(cluster.bin_dir / "pg_restore")
    subprocess.run([program, "--exit-on-error", "-d", dsn, str(file)], check=True, capture_output=True)


def test_a_rollback_can_be_undone_from_its_backup(empty_cluster: Cluster, backup: Backup) -> None:
    dsn, said = database(empty_cluster, "app"), list[str]()
    migrate.up(dsn, backup=backup, say=quiet)
    assert list(backup.directory.iterdir()) == []
    execute(dsn, "SELECT sluice.create_signing_key()")
    execute(dsn, """SELECT sluice.generate_api_key('x', 'ann', '["admin"]')""")
    before = dump(empty_cluster, "app")
    assert migrate.rollback(dsn, ALL[0], backup=backup, say=said.append) == ALL[:0:-1]
    (made,) = backup.directory.iterdir()
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert f"backup written to {made} ({made.stat().st_size:,} bytes, " in "\n".join(said)
    assert any("core/0003_api_keys.rollback.sql:6: DROP TABLE" in line for line in said)
    assert migrate.rollback(dsn, ALL[0], backup=backup, say=quiet) == []
    assert list(backup.directory.iterdir()) == [made]

    restored = database(empty_cluster, "restored")
    restore(empty_cluster, made, restored)
    # PostgreSQL nests BETWEEN otherwise when it reads its own text again.
    assert nestless(dump(empty_cluster, "restored")) == nestless(before)
    assert values(restored, "SELECT user_id FROM sluice.api_keys") == ["ann"]
    assert values(restored, "SELECT count(*) FROM sluice.signing_keys") == [1]
    assert migrate.validate(restored) == []
    assert migrate.up(restored, backup=None, say=quiet) == []


def test_what_destroys_data_is_backed_up_before(empty_cluster: Cluster, backup: Backup, notes: Path) -> None:
    dsn, said = database(empty_cluster, "app"), list[str]()
    directories = [sql_directory(), notes]
    third = [notes / "notes" / name for name in ("0003_gone.sql", "0003_gone.rollback.sql")]
    texts = [file.read_text() for file in third]
    for file in third:
        file.unlink()
    migrate.up(dsn, ["notes"], directories=directories, backup=backup, say=quiet)
    assert list(backup.directory.iterdir()) == []
    for file, text in zip(third, texts, strict=True):
        file.write_text(text)
    migrate.up(dsn, ["notes"], directories=directories, backup=backup, say=said.append)
    (made,) = backup.directory.iterdir()
    assert said[0] == "destroys data: notes/0003_gone.sql:2: DROP TABLE"
    assert said[1].startswith("backup written to ") and said[2].startswith("notes_0003 gone: applied in ")
    restored = database(empty_cluster, "restored")
    restore(empty_cluster, made, restored)
    assert values(restored, "SELECT i FROM notes.a") == [1, 2]


def test_the_command_tells_where_the_backup_is(empty_cluster: Cluster, backup: Backup) -> None:
    dsn = database(empty_cluster, "app")
    at = ("--dsn", dsn, "--pg-dump", backup.pg_dump, "--backup-directory", str(backup.directory))
    assert run("up", "--dsn", dsn).exit_code == 0
    result = run("rollback", ALL[2], *at, "--json")
    assert result.exit_code == 0, result.output
    answer: Any = json.loads(result.stdout)
    assert [each["revision"] for each in answer["rolled_back"]] == ALL[:2:-1]
    assert Path(answer["backup"]) in backup.directory.iterdir()
    result = run("rollback", ALL[1], *at)
    assert result.exit_code == 0, result.output
    assert "\nbackup written to " in result.stdout
    assert len(list(backup.directory.iterdir())) == 2
    assert run("rollback", "base", *at, "--no-backup").exit_code == 0
    assert len(list(backup.directory.iterdir())) == 2


def test_the_password_is_in_no_command_line(empty_cluster: Cluster, backup: Backup, tmp_path: Path) -> None:
    dsn = database(empty_cluster, "app")
    migrate.up(dsn, backup=None, say=quiet)
    told = tmp_path / "told"
    spy = tmp_path / "pg_dump"
    spy.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {told}\nexec {backup.pg_dump} "$@"\n')
    spy.chmod(0o755)
    migrate.rollback(dsn, ALL[2], backup=replace(backup, pg_dump=str(spy)), say=quiet)
    assert "--format=custom" in told.read_text()
    assert empty_cluster.password not in told.read_text()


def test_without_a_usable_pg_dump_nothing_is_undone(
    empty_cluster: Cluster, backup: Backup, notes: Path, tmp_path: Path
) -> None:
    dsn = database(empty_cluster, "app")
    directories = [sql_directory(), notes]
    major, minor = divmod(int(values(dsn, "SHOW server_version_num")[0]), 10000)
    old, odd = tmp_path / "old", tmp_path / "odd"
    old.write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {major - 1}.7 (Debian)'\n")
    odd.write_text("#!/bin/sh\necho something else\n")
    old.chmod(0o755)
    odd.chmod(0o755)
    (tmp_path / "file").touch()
    wrong = {
        replace(
            backup, pg_dump="no_such_pg_dump"
        ): rf"needs pg_dump {major} or newer.*No such file.*--no-backup",
        replace(
            backup, pg_dump=str(old)
        ): rf"version {major - 1}\.7, and can't read .*{major}\.{minor}: .*--pg-dump",
        replace(backup, pg_dump=str(odd)): "doesn't tell a version",
        replace(
            backup, directory=tmp_path / "file"
        ): "cannot write the backup .*Not a directory.*--backup-directory",
    }
    # Before anything of it is applied.
    for each, message in wrong.items():
        with pytest.raises(MigrationError, match=message):
            migrate.up(dsn, ["notes"], directories=directories, backup=each, say=quiet)
    assert values(dsn, "SELECT to_regnamespace('sluice')") == [None]
    migrate.up(dsn, ["notes"], directories=directories, backup=backup, say=quiet)
    for each, message in wrong.items():
        with pytest.raises(MigrationError, match=message):
            migrate.rollback(dsn, "notes_0001", directories=directories, backup=each, say=quiet)
    assert migrate.validate(dsn, directories=directories) == []
    assert len(list(backup.directory.iterdir())) == 1


@pytest.mark.parametrize("version", DEBIAN)
def test_an_older_pg_dump_is_refused_for_a_newer_server(
    version: str, bare_cluster: Cluster, empty_cluster: Cluster, backup: Backup
) -> None:
    older = str(DEBIAN[version] / "pg_dump")
    server = int(values(bare_cluster.primary.dsn(), "SHOW server_version_num")[0]) // 10000
    dsn = database(empty_cluster, "app")
    migrate.up(dsn, backup=None, say=quiet)
    if int(version) < server:
        with pytest.raises(
            MigrationError, match=rf"is version {version}\..* can't read the server, which is {server}"
        ):
            migrate.rollback(dsn, ALL[2], backup=replace(backup, pg_dump=older), say=quiet)
        assert list(backup.directory.iterdir()) == []
    else:
        newer = replace(backup, pg_dump=str(bundled_bin_dir() / "pg_dump"))
        assert migrate.rollback(dsn, ALL[2], backup=newer, say=quiet) == ALL[:2:-1]
        assert len(list(backup.directory.iterdir())) == 1


def test_a_backup_that_would_lack_rows_is_refused(empty_cluster: Cluster, backup: Backup) -> None:
    admin = database(empty_cluster, "app")
    execute(admin, "CREATE ROLE boss LOGIN CREATEROLE PASSWORD 'boss'", "ALTER DATABASE app OWNER TO boss")
    dsn = empty_cluster.primary.dsn("app", "boss", "boss")
    migrate.up(dsn, backup=backup, say=quiet)
    with pytest.raises(MigrationError, match=r"(?s)row-level security.*sees every row.*--no-backup"):
        migrate.rollback(dsn, ALL[2], backup=backup, say=quiet)
    assert list(backup.directory.iterdir()) == []
    assert migrate.validate(dsn) == []
    execute(admin, "ALTER ROLE boss BYPASSRLS")
    assert migrate.rollback(dsn, ALL[2], backup=backup, say=quiet) == ALL[:2:-1]
    assert len(list(backup.directory.iterdir())) == 1


def test_a_backup_reaches_a_server_over_its_socket(
    empty_cluster: Cluster, backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    database(empty_cluster, "app")
    socket, port = empty_cluster.socket_directory, empty_cluster.primary.port
    monkeypatch.setenv("PGPASSWORD", empty_cluster.password)
    dsn = f"host={socket} port={port} dbname=app user=postgres"
    migrate.up(dsn, backup=None, say=quiet)
    assert migrate.rollback(dsn, ALL[2], backup=backup, say=quiet) == ALL[:2:-1]
    assert len(list(backup.directory.iterdir())) == 1
