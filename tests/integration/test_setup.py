"""From an empty PostgreSQL to a working installation, and the bundled SQL up and down."""

from __future__ import annotations

import json
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from proxy import config, migrate, setup
from proxy.embedded import Cluster, bundled_bin_dir
from proxy.migrate import MigrationError
from proxy.resources import sql_directory

pytest_plugins = ["tests.integration.versions"]

ALL = [f"core_{number:04d}" for number in (1, 2, 3, 4)]


def quiet(_: str) -> None:
    pass


def values(dsn: str, query: str) -> list[Any]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return [row[0] for row in connection.execute(query.encode())]


def execute(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def database(cluster: Cluster, name: str) -> str:
    execute(cluster.primary.dsn(), f"CREATE DATABASE {name}")
    return cluster.primary.dsn(name)


def dump(cluster: Cluster, name: str) -> list[str]:
    """Return the schema as pg_dump writes it, without the key that newer ones make anew each time."""
    text = cluster.run("pg_dump", "--schema-only", cluster.primary.dsn(name))
    return [line for line in text.splitlines() if "restrict " not in line]


def write_migration(directory: Path, name: str, up: str, down: str = "SELECT 1;") -> None:
    path = directory / f"{name}.sql"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(up)
    path.with_suffix(".rollback.sql").write_text(down)


@pytest.fixture
def own_sql(tmp_path: Path) -> Path:
    """Give a copy of the bundled SQL to add migrations to."""
    for file in (sql_directory() / "core").glob("*.sql"):
        copy = tmp_path / "sql" / "core" / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return tmp_path / "sql"


# setup


def test_setup_makes_a_working_installation(empty_cluster: Cluster, tmp_path: Path) -> None:
    server = empty_cluster.primary
    result = setup.setup(server.dsn("app"), "app")
    assert (result.migrations, result.warnings) == (ALL, [])
    assert set(result.passwords) == {"sluice_control", "app_rw", "app_ro", "app_admin"}
    assert result.admin_key is not None and result.admin_key.startswith("ctm_")
    for password in (*result.passwords.values(), result.admin_key):
        assert password not in repr(result)
        assert password not in server.log_tail()
    verifiers = values(server.dsn(), "SELECT rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL")
    assert len(verifiers) == 5 and all(each.startswith("SCRAM-SHA-256$") for each in verifiers)

    dsn = {login: server.dsn("app", login, password) for login, password in result.passwords.items()}
    settings = "SELECT current_setting('{}')"
    assert [values(dsn[login], settings.format("track_activities")) for login in setup.GROUPS] == [
        ["off"]
    ] * 3
    assert values(dsn["app_ro"], settings.format("default_transaction_read_only")) == ["on"]
    assert values(dsn["app_rw"], settings.format("default_transaction_read_only")) == ["off"]
    assert values(dsn["app_rw"], settings.format("search_path")) == ["public"]
    attributes = """
        SELECT rolname FROM pg_roles WHERE oid >= 16384
        AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication OR NOT rolinherit)
    """
    assert values(server.dsn(), attributes) == []

    # An administrator's tables are everybody's to use, and nobody else's to make.
    arguments = ["-i", "-q", "-s", "1", dsn["app_admin"]]
    subprocess.run([str(bundled_bin_dir() / "pgbench"), *arguments], check=True, capture_output=True)
    for login in ("app_rw", "app_ro"):
        assert values(dsn[login], "SELECT count(*) FROM pgbench_accounts") == [100_000]
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)):
            execute(dsn[login], "CREATE TABLE public.mine ()")
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)):
            execute(dsn[login], "TRUNCATE pgbench_accounts")
    execute(dsn["app_rw"], "UPDATE pgbench_accounts SET abalance = 1 WHERE aid = 1")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        execute(dsn["app_ro"], "BEGIN READ WRITE; UPDATE pgbench_accounts SET abalance = 2 WHERE aid = 1")

    path = tmp_path / "pgsluice.yaml"
    setup.write_private(path, setup.configuration(result))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = config.load(path, {})
    pools = loaded.databases["app"].pools
    assert {name: pools[name].user for name in pools} == {
        "primary": "app_rw",
        "readonly": "app_ro",
        "priority": "app_rw",
        "background": "app_rw",
        "admin": "app_admin",
    }
    assert pools["primary"].password is not None
    assert pools["primary"].password.get_secret_value() == result.passwords["app_rw"]
    assert loaded.databases["app"].hosts[0].port == server.port


def test_setup_again_changes_nothing_and_mends_what_is_missing(empty_cluster: Cluster) -> None:
    server = empty_cluster.primary
    first = setup.setup(server.dsn("app"), "app")
    before = dump(empty_cluster, "app"), values(server.dsn("app"), "SELECT id FROM sluice.api_keys")
    again = setup.setup(server.dsn("app"), "app")
    assert (again.migrations, again.passwords, again.admin_key) == ([], {}, None)
    assert before == (
        dump(empty_cluster, "app"),
        values(server.dsn("app"), "SELECT id FROM sluice.api_keys"),
    )
    assert values(server.dsn("app"), "SELECT count(*) FROM sluice.signing_keys") == [1]

    execute(
        server.dsn("app"),
        "REVOKE sluice_readwrite FROM app_rw",
        "ALTER ROLE app_ro RESET ALL",
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        "UPDATE sluice.api_keys SET revoked_at = now()",
    )
    mended = setup.setup(server.dsn("app"), "app", passwords={"app_rw": "a new one ${x}"})
    assert mended.admin_key is not None and mended.admin_key != first.admin_key
    # Roles belong to the cluster: the old password of app_ro is still good.
    app_ro = server.dsn("app", "app_ro", first.passwords["app_ro"])
    assert values(app_ro, "SELECT current_setting('default_transaction_read_only')") == ["on"]
    app_rw = server.dsn("app", "app_rw", "a new one ${x}")
    assert values(app_rw, "SELECT pg_has_role('sluice_readwrite', 'USAGE')") == [True]
    assert values(app_rw, "SELECT has_schema_privilege('public', 'CREATE')") == [False]
    assert '"a new one $${x}"' in setup.configuration(mended)
    assert setup.configuration(mended).count("${APP_RO_PASSWORD}") == 1
    assert '"a new one' not in setup.configuration(mended, inline=False)

    other = setup.setup(server.dsn(), "another")
    assert (other.migrations, other.passwords) == (ALL, {})
    assert other.admin_key is not None


def test_setup_refuses_what_would_be_unsafe(empty_cluster: Cluster) -> None:
    server = empty_cluster.primary
    with pytest.raises(setup.SetupError, match="no logins called nobody"):
        setup.setup(server.dsn(), "app", passwords={"nobody": "x"})
    with pytest.raises(setup.SetupError, match="would be lost"):
        setup.setup(server.dsn(), "app", new_logins=False)
    with pytest.raises(setup.SetupError, match="password authentication failed"):
        setup.setup(server.dsn(password="wrong"), "app")
    execute(server.dsn(), "CREATE ROLE app_ro LOGIN BYPASSRLS")
    with pytest.raises(setup.SetupError, match="app_ro has more rights"):
        setup.setup(server.dsn(), "app")
    execute(server.dsn(), "ALTER ROLE sluice_owner SUPERUSER")
    with pytest.raises(MigrationError, match=r"core/0001_roles\.sql:\d+: role sluice_owner exists with more"):
        setup.setup(server.dsn(), "another")


def test_setup_as_a_command(
    empty_cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dsn, path = empty_cluster.primary.dsn(), tmp_path / "pgsluice.yaml"
    with pytest.raises(setup.SetupError, match="would be lost"):
        setup.run(dsn, "app", config=None, environ={})
    given = dict.fromkeys(setup.VARIABLES.values(), "from the environment")
    assert setup.run(dsn, "app", config=path, inline=False, environ=given) == 0
    said = capsys.readouterr().out
    assert "first admin key" in said and "database app is ready" in said
    assert said.endswith(f"next: pgsluice check -c {path}\n      pgsluice serve -c {path}\n")
    assert "from the environment" not in said + path.read_text()
    loaded = config.load(path, given)
    secret = loaded.databases["app"].pools["readonly"].password
    assert secret is not None and secret.get_secret_value() == "from the environment"
    written = path.read_bytes()
    assert setup.run(dsn, "app", config=path, environ={}, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == {
        "database": "app",
        "admin_key": None,
        "migrations": [],
        "warnings": [],
        "config": None,
    }
    assert path.read_bytes() == written


def test_setup_without_a_superuser_says_what_it_could_not(empty_cluster: Cluster) -> None:
    server = empty_cluster.primary
    execute(server.dsn(), "CREATE ROLE boss LOGIN CREATEDB CREATEROLE PASSWORD 'boss'")
    result = setup.setup(server.dsn("postgres", "boss", "boss"), "app")
    assert result.migrations == ALL and result.admin_key is not None
    assert len(result.warnings) == 4 and all("only a superuser can" in each for each in result.warnings)
    assert setup.setup(server.dsn("postgres", "boss", "boss"), "app").migrations == []


# migrate


def test_up_down_and_up_leave_the_same_catalogue(empty_cluster: Cluster) -> None:
    dsn = database(empty_cluster, "app")
    nothing = dump(empty_cluster, "app")
    assert migrate.up(dsn, say=quiet) == ALL
    # The migration, its version and its checksum are the work of one transaction.
    last = "SELECT xmin::text FROM sluice.{}"
    assert values(dsn, last.format("schema_version")) == values(
        dsn, last.format("schema_checksums WHERE revision = 'core_0004'")
    )
    full = dump(empty_cluster, "app")
    assert migrate.up(dsn, say=quiet) == []
    stages = {}
    for revision in reversed(ALL[:-1]):
        undone = migrate.rollback(dsn, revision, say=quiet)
        assert len(undone) == 1
        stages[revision] = dump(empty_cluster, "app")
    assert migrate.rollback(dsn, "base", say=quiet) == [ALL[0]]
    assert dump(empty_cluster, "app") == nothing
    assert values(dsn, "SELECT rolname FROM pg_roles WHERE rolname LIKE 'sluice%'") == []
    assert migrate.rollback(dsn, "base", say=quiet) == []
    assert migrate.up(dsn, say=quiet) == ALL
    assert dump(empty_cluster, "app") == full
    assert migrate.rollback(dsn, ALL[1], say=quiet) == [ALL[3], ALL[2]]
    assert dump(empty_cluster, "app") == stages[ALL[1]]


def test_the_plan_is_what_runs(empty_cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    applied, planned = database(empty_cluster, "applied"), database(empty_cluster, "planned")
    migrate.up(applied, say=quiet)
    script = migrate.plan(planned)
    assert migrate.status(planned)[0].applied_at is None
    execute(planned, script)
    assert dump(empty_cluster, "planned") == dump(empty_cluster, "applied")
    assert migrate.up(planned, say=quiet) == []
    assert migrate.validate(planned) == []
    assert migrate.plan(planned) == ""
    assert migrate.run("rollback", planned, version=ALL[2], dry_run=True) == 0
    assert "DROP TABLE sluice.api_access_logs" in capsys.readouterr().out
    execute(planned, migrate.plan(planned, version=ALL[2]))
    assert [each.revision for each in migrate.status(planned) if each.applied_at] == ALL[:3]


def test_a_wrong_migration_leaves_nothing_and_names_its_line(empty_cluster: Cluster, own_sql: Path) -> None:
    dsn = database(empty_cluster, "app")
    migrate.up(dsn, directory=own_sql, say=quiet)
    before = dump(empty_cluster, "app")
    wrong = {
        "CREATE TABLE sluice.a ();\n\n-- …\nCREATE TABL sluice.b ();": r"core/0005_x\.sql:4: syntax error",
        "CREATE TABLE sluice.a ();\nSELECT 'é',\n nowhere;": r"core/0005_x\.sql:3: column .* does not exist",
        "CREATE TABLE sluice.a ();\nDO $$\nBEGIN RAISE 'no' USING HINT = 'do';\nEND $$;": (
            r"(?s)core/0005_x\.sql:2: no\nHINT: do\nCONTEXT: PL/pgSQL"
        ),
        "CREATE TABLE sluice.a ();\n\n\nSELECT 1/0;": r"core/0005_x\.sql:4: division by zero",
    }
    for text, message in wrong.items():
        write_migration(own_sql / "core", "0005_x", text)
        with pytest.raises(MigrationError, match=message):
            migrate.up(dsn, directory=own_sql, say=quiet)
        assert dump(empty_cluster, "app") == before
    write_migration(own_sql / "core", "0005_x", "CREATE TABLE sluice.a (percent text DEFAULT '%s%%');")
    assert migrate.up(dsn, directory=own_sql, say=quiet) == ["core_0005"]
    assert values(dsn, "INSERT INTO sluice.a DEFAULT VALUES RETURNING percent") == ["%s%%"]
    with pytest.raises(MigrationError, match="division"):
        write_migration(own_sql / "core", "0005_x", "", "DROP TABLE sluice.a; SELECT 1/0;")
        migrate.rollback(dsn, "core_0004", directory=own_sql, say=quiet)
    assert values(dsn, "SELECT count(*) FROM sluice.a") == [1]


def test_a_branch_brings_what_it_depends_on(empty_cluster: Cluster, own_sql: Path) -> None:
    dsn = database(empty_cluster, "app")
    write_migration(
        own_sql / "extra",
        "0001_first",
        "-- depends: core_0003\nCREATE TABLE sluice.first ();",
        "DROP TABLE sluice.first;",
    )
    write_migration(
        own_sql / "extra", "0002_second", "CREATE TABLE sluice.second ();", "DROP TABLE sluice.second;"
    )
    assert migrate.up(dsn, ["extra"], directory=own_sql, say=quiet) == [*ALL[:3], "extra_0001", "extra_0002"]
    assert migrate.up(dsn, ["core", "extra"], directory=own_sql, say=quiet) == [ALL[3]]
    assert migrate.up(dsn, ["extra", "core"], directory=own_sql, say=quiet) == []
    assert migrate.rollback(dsn, "extra_0001", directory=own_sql, say=quiet) == ["extra_0002"]
    undone = migrate.rollback(dsn, "core_0002", directory=own_sql, say=quiet)
    assert set(undone) == {"extra_0001", "core_0004", "core_0003"}
    assert undone.index("extra_0001") < undone.index("core_0003")
    assert migrate.up(dsn, ["core", "extra"], directory=own_sql, say=quiet)[-2:] == [
        "extra_0001",
        "extra_0002",
    ]
    assert len(migrate.rollback(dsn, "base", directory=own_sql, say=quiet)) == 6
    assert values(dsn, "SELECT nspname FROM pg_namespace WHERE nspname = 'sluice'") == []


def test_drift_is_found(empty_cluster: Cluster, own_sql: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dsn = database(empty_cluster, "app")
    first, second = migrate.create("Add a column!", "core", directory=own_sql)
    assert (first.name, second.name) == ("0005_add_a_column.sql", "0005_add_a_column.rollback.sql")
    assert [each.applied_at for each in migrate.status(dsn, directory=own_sql)] == [None] * 5
    migrate.up(dsn, directory=own_sql, say=quiet)
    assert migrate.validate(dsn, directory=own_sql) == []
    changed = own_sql / "core" / "0002_identity.sql"
    changed.write_text(changed.read_text() + "-- changed\n")
    first.unlink()
    second.unlink()
    assert migrate.validate(dsn, directory=own_sql) == [
        "core_0002: changed since it was applied",
        "core_0005: applied, but its file is missing",
    ]
    for refused in ("core_0009", "nothing"):
        with pytest.raises(MigrationError, match=refused):
            migrate.rollback(dsn, refused, directory=own_sql, say=quiet)
    # The command itself looks at the bundled files, which know nothing of the fifth.
    assert migrate.run("validate", dsn, as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == ["core_0005: applied, but its file is missing"]
    assert migrate.run("status", dsn) == 0
    assert capsys.readouterr().out.count("core_000") == 5
    assert migrate.run("status", dsn, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)[0]["revision"] == "core_0001"
    with pytest.raises(MigrationError, match="core_0005"):
        migrate.run("rollback", dsn, version="core_0003", dry_run=True)


def test_two_migrations_at_once_take_turns(empty_cluster: Cluster) -> None:
    dsn = database(empty_cluster, "app")
    results: list[list[str]] = []
    threads = [threading.Thread(target=lambda: results.append(migrate.up(dsn, say=quiet))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [[], [], ALL]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["core/first.sql"], "is called BRANCH/NNNN_name.sql"),
        (["core/0001_First.sql"], "is called BRANCH/NNNN_name.sql"),
        (["core/0001_first.sql"], r"its rollback, 0001_first\.rollback\.sql, is missing"),
        (
            ["core/0001_a.sql", "core/0001_a.rollback.sql", "core/0001_b.sql", "core/0001_b.rollback.sql"],
            "another migration core_0001",
        ),
    ],
)
def test_rejects_files_that_are_no_migrations(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("SELECT 1;")
    with pytest.raises(MigrationError, match=message):
        migrate.Migrations(tmp_path)


def test_rejects_a_migration_without_a_name(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="letters or digits"):
        migrate.create(" !?", "core", directory=tmp_path)
