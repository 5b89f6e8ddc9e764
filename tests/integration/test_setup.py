"""From an empty PostgreSQL to a working installation."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import psycopg
import pytest

from proxy import config, setup
from proxy.embedded import Cluster, Server, bundled_bin_dir
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
        "pg_hba": [
            "host    app  sluice_control,app_rw,app_ro,app_admin  127.0.0.1/32  scram-sha-256",
            "host    all  sluice_control,app_rw,app_ro,app_admin  all  reject",
            "local   all  sluice_control,app_rw,app_ro,app_admin  reject",
        ],
        "hardening": [],
    }
    assert path.read_bytes() == written


def catalogue(server: Server) -> list[list[str]]:
    """Return which versions there are of the rows that setup may change."""
    return [
        values(server.dsn("app"), f"SELECT xmin::text || ' ' || oid FROM {table} ORDER BY oid")
        for table in ("pg_authid", "pg_database", "pg_namespace", "pg_class", "pg_proc", "pg_default_acl")
    ] + [
        values(server.dsn("app"), f"SELECT t::text || t.xmin::text FROM {table} AS t ORDER BY 1")
        for table in ("pg_auth_members", "pg_db_role_setting", "sluice.api_keys", "sluice.signing_keys")
    ]


def test_setup_again_writes_nothing(empty_cluster: Cluster) -> None:
    server, said = empty_cluster.primary, list[str]()
    passwords = dict.fromkeys(setup.VARIABLES, "a password")
    setup.setup(server.dsn("app"), "app", passwords=passwords)
    before = catalogue(server)
    setup.setup(server.dsn("app"), "app", passwords=passwords, say=said.append)
    assert catalogue(server) == before
    assert said == []


def test_setup_changes_no_password_in_silence(empty_cluster: Cluster) -> None:
    server, said = empty_cluster.primary, list[str]()
    first = setup.setup(server.dsn("app"), "app")
    execute(server.dsn(), "ALTER ROLE app_ro NOLOGIN")
    assert setup.setup(server.dsn("app"), "app", say=said.append).passwords == {}
    assert values(server.dsn("app", "app_ro", first.passwords["app_ro"]), "SELECT 1") == [1]
    assert said == []
    setup.setup(server.dsn("app"), "app", passwords={"app_rw": "another"}, say=said.append)
    assert said == ["the password of app_rw is now another"]
    assert values(server.dsn("app", "app_rw", "another"), "SELECT 1") == [1]


def test_setup_takes_statistics_from_everybody(empty_cluster: Cluster) -> None:
    server = empty_cluster.primary
    setup.setup(server.dsn("app"), "app")
    execute(server.dsn("app"), "CREATE EXTENSION pg_stat_statements SCHEMA public")
    setup.setup(server.dsn("app"), "app")
    may = "SELECT has_table_privilege('{}', 'pg_stat_statements', 'SELECT')"
    assert [values(server.dsn("app"), may.format(role)) for role in ("app_rw", "sluice_control")] == [
        [False],
        [True],
    ]


def test_setup_with_taskmaster(empty_cluster: Cluster) -> None:
    server = empty_cluster.primary
    result = setup.setup(server.dsn("app"), "app", ["taskmaster"])
    assert {each.rpartition("_")[0] for each in result.migrations} == {"core", "taskmaster"}
    assert setup.setup(server.dsn("app"), "app", ["taskmaster"]).migrations == []


HARDENED = {
    "SELECT pg_cancel_backend(0)": "pg_cancel_backend",
    "SELECT pg_terminate_backend(0)": "pg_terminate_backend",
    "SELECT lo_creat(-1)": "large objects (lo_*)",
    "SELECT lowrite(0, '')": "large objects (lo_*)",
    "SELECT query_to_xml('SELECT 1', true, true, '')": "query_to_xml*",
    "SELECT ts_stat('SELECT NULL::tsvector')": "ts_stat",
    "SELECT ts_rewrite('a'::tsquery, 'SELECT NULL::tsquery, NULL::tsquery')": "ts_rewrite",
    "DO 'BEGIN END'": "USAGE on plpgsql",
    "CREATE TEMPORARY TABLE mine ()": "TEMPORARY on database app",
}


def test_harden_takes_what_it_says_from_everybody(
    empty_cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = empty_cluster.primary
    result = setup.setup(server.dsn("app"), "app")
    app_rw = server.dsn("app", "app_rw", result.passwords["app_rw"])
    execute(
        server.dsn("app"), "GRANT CREATE ON DATABASE app TO PUBLIC", "GRANT CREATE ON SCHEMA public TO PUBLIC"
    )
    # All that is missing for some of these is privileges: with them they fail otherwise, or not at all.
    for statement in HARDENED:
        try:
            execute(app_rw, statement)
        except psycopg.Error as error:
            assert not isinstance(error, psycopg.errors.InsufficientPrivilege), statement
    states = {each.what: each.state for each in setup.harden(server.dsn(), "app")}
    assert set(HARDENED.values()) | {"CREATE on database app", "CREATE on schema public"} == states.keys()
    assert set(states.values()) == {"done"}
    for statement in (*HARDENED, "CREATE SCHEMA mine", "CREATE TABLE public.mine ()"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            execute(app_rw, statement)
    # Functions that are there go on working, and administrators may write others.
    assert values(app_rw, "SELECT sluice.current_user_id()") == [None]
    execute(server.dsn("app", "app_admin", result.passwords["app_admin"]), "DO 'BEGIN END'")
    path = tmp_path / "pgsluice.yaml"
    assert setup.run(server.dsn(), "app", config=path, environ={}, hardened=True, as_json=True) == 0
    again = json.loads(capsys.readouterr().out)["hardening"]
    assert {each["state"] for each in again} == {"already so"}
    assert setup.run(server.dsn(), "app", config=path, environ={}, hardened=True) == 0
    assert "USAGE on plpgsql: already so\n" in capsys.readouterr().out


def test_harden_tells_what_is_not_possible(empty_cluster: Cluster) -> None:
    server = empty_cluster.primary
    execute(server.dsn(), "CREATE ROLE boss LOGIN CREATEDB CREATEROLE PASSWORD 'boss'")
    boss = server.dsn("postgres", "boss", "boss")
    setup.setup(boss, "app")
    states = {each.what: each.state for each in setup.harden(boss, "app")}
    # It owns the database, and nothing that came with the server.
    assert states.pop("TEMPORARY on database app") == "done"
    assert states.pop("CREATE on database app") == states.pop("CREATE on schema public") == "already so"
    assert set(states.values()) == {"not possible here"}


def test_setup_without_a_superuser_says_what_it_could_not(empty_cluster: Cluster) -> None:
    server = empty_cluster.primary
    execute(server.dsn(), "CREATE ROLE boss LOGIN CREATEDB CREATEROLE PASSWORD 'boss'")
    result = setup.setup(server.dsn("postgres", "boss", "boss"), "app")
    assert result.migrations == ALL and result.admin_key is not None
    assert len(result.warnings) == 5 and all("only a superuser can" in each for each in result.warnings)
    assert setup.setup(server.dsn("postgres", "boss", "boss"), "app").migrations == []
