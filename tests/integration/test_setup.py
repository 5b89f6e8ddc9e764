"""From an empty PostgreSQL to a working installation."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import psycopg
import pytest

from proxy import config, setup
from proxy.embedded import Cluster, bundled_bin_dir
from proxy.migrate import MigrationError
from tests.integration.databases import ALL, dump, execute, values

pytest_plugins = ["tests.integration.versions"]


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
