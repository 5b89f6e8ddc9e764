"""`pgsluice check` on live servers: nothing to say after `setup`, and every hardening that is taken back is found.

Each case undoes one thing by hand; the check has to name it with a statement, and after that statement, pasted into
a superuser's psql, has to be as content as before.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml
from psycopg import sql
from typer.testing import CliRunner

from proxy.cli import app
from proxy.config import parse
from proxy.embedded import Cluster
from proxy.migrate import Migrations
from proxy.preflight import gate, live
from proxy.preflight.finding import ERROR, WARNING, Finding
from proxy.preflight.live import Report
from proxy.setup import harden, setup
from tests.integration.support import Installation, Proxy, configuration, wait_until

pytest_plugins = ["tests.integration.versions"]

TEMPORARY = "PUBLIC may make temporary tables in database app; without that, sessions can't have any"


@dataclass(frozen=True)
class Checked:
    """An installation apart from that of the other tests, and its configuration."""

    installation: Installation
    content: dict[str, Any]

    def look(self) -> list[Finding]:
        """Return what the check finds."""
        return [told.finding for told in self.report().found]

    def report(self, content: dict[str, Any] | None = None) -> Report:
        bundled = Migrations().migrations
        config = parse(yaml.safe_dump(content or self.content), {})
        return asyncio.run(live.look(config, {each: bundled[each].sha256() for each in bundled}))

    def psql(self, script: str) -> None:
        """Paste `script` into the superuser's psql."""
        done = self.installation.superuser().psql(script, "-v", "ON_ERROR_STOP=1")
        assert done.returncode == 0, f"{script}\n{done.stderr}"


@pytest.fixture(scope="module")
def checked(bare_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checked]:
    """Give a fresh installation on each PostgreSQL; what it made is gone afterwards."""
    result = setup(bare_cluster.primary.dsn("app"), "app")
    installation = Installation(bare_cluster, result.passwords)
    directory = tmp_path_factory.mktemp("check")
    yield Checked(installation, configuration(installation, 6432, 9432, directory))
    with psycopg.connect(bare_cluster.primary.dsn(), autocommit=True) as superuser:
        superuser.execute("DROP DATABASE app WITH (FORCE)")
        roles = "SELECT rolname FROM pg_roles WHERE oid >= 16384"
        for (role,) in superuser.execute(roles).fetchall():
            superuser.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_after_setup_there_is_nothing_but_temporary_tables(checked: Checked) -> None:
    report = checked.report()
    assert report.sound
    assert [(told.finding.severity, told.finding.what) for told in report.found] == [(WARNING, TEMPORARY)]


CASES: dict[str, tuple[str, str, str]] = {
    # what is undone, a part of what is found, and the statement that mends it
    "superuser": ("ALTER ROLE app_ro SUPERUSER", "app_ro has SUPERUSER", "ALTER ROLE app_ro NOSUPERUSER;"),
    "bypassrls": ("ALTER ROLE app_rw BYPASSRLS", "app_rw has BYPASSRLS", "ALTER ROLE app_rw NOBYPASSRLS;"),
    "createrole": ("ALTER ROLE app_rw CREATEROLE", "has CREATEROLE", "ALTER ROLE app_rw NOCREATEROLE;"),
    "createdb": ("ALTER ROLE app_admin CREATEDB", "has CREATEDB", "ALTER ROLE app_admin NOCREATEDB;"),
    "replication": ("ALTER ROLE app_rw REPLICATION", "has REPLICATION", "ALTER ROLE app_rw NOREPLICATION;"),
    "group bypassrls": (
        "ALTER ROLE sluice_readonly BYPASSRLS",
        "sluice_readonly has BYPASSRLS",
        "ALTER ROLE sluice_readonly NOBYPASSRLS;",
    ),
    "definer bypassrls": (
        "ALTER ROLE sluice_definer BYPASSRLS",
        "sluice_definer has BYPASSRLS",
        "ALTER ROLE sluice_definer NOBYPASSRLS;",
    ),
    "control attributes": (
        "ALTER ROLE sluice_control CREATEROLE",
        "sluice_control has CREATEROLE",
        "ALTER ROLE sluice_control NOCREATEROLE;",
    ),
    "owner logs in": ("ALTER ROLE sluice_owner LOGIN", "may log in", "ALTER ROLE sluice_owner NOLOGIN;"),
    "no login": ("ALTER ROLE app_ro NOLOGIN", "app_ro may not log in", "ALTER ROLE app_ro LOGIN;"),
    "password expired": (
        "ALTER ROLE app_ro VALID UNTIL '2020-01-01'",
        "the password of app_ro is no longer valid",
        "ALTER ROLE app_ro VALID UNTIL 'infinity';",
    ),
    "no group": (
        "REVOKE sluice_readwrite FROM app_rw",
        "app_rw is no member of sluice_readwrite",
        "GRANT sluice_readwrite TO app_rw;",
    ),
    "no common group": (
        "REVOKE authenticated_users FROM sluice_readonly",
        "sluice_readonly is no member of authenticated_users",
        "GRANT authenticated_users TO sluice_readonly;",
    ),
    "may grant its group": (
        "GRANT sluice_readwrite TO app_rw WITH ADMIN OPTION",
        "app_rw may grant sluice_readwrite",
        "REVOKE ADMIN OPTION FOR sluice_readwrite FROM app_rw;",
    ),
    "owner's member": (
        "GRANT sluice_owner TO app_rw",
        "app_rw is a member of sluice_owner",
        "REVOKE sluice_owner FROM app_rw;",
    ),
    "definer's member, by the group": (
        "GRANT sluice_definer TO sluice_readonly",
        "sluice_readonly is a member of sluice_definer",
        "REVOKE sluice_definer FROM sluice_readonly;",
    ),
    "control's member, by another role": (
        'DROP ROLE IF EXISTS "a step"; CREATE ROLE "a step" IN ROLE sluice_control; GRANT "a step" TO app_ro',
        "app_ro is a member of a step (and so of sluice_control)",
        'REVOKE "a step" FROM app_ro;',
    ),
    "administrator": (
        "GRANT sluice_admin TO app_rw",
        "app_rw is a member of sluice_admin",
        "REVOKE sluice_admin FROM app_rw;",
    ),
    "predefined role": (
        "GRANT pg_read_all_data TO app_ro",
        "app_ro is a member of pg_read_all_data",
        "REVOKE pg_read_all_data FROM app_ro;",
    ),
    "another role": (
        "CREATE ROLE team; GRANT team TO app_rw",
        "app_rw is a member of team",
        "REVOKE team FROM app_rw;",
    ),
    "somebody else can sign": (
        "CREATE ROLE somebody LOGIN; GRANT sluice_definer TO somebody",
        "somebody is a member of sluice_definer, which can sign for any user",
        "REVOKE sluice_definer FROM somebody;",
    ),
    "control's membership": (
        "GRANT pg_monitor TO sluice_control",
        "sluice_control is a member of pg_monitor",
        "REVOKE pg_monitor FROM sluice_control;",
    ),
    "no sight of timelines": (
        "REVOKE pg_read_all_stats FROM sluice_control",
        "sluice_control is no member of pg_read_all_stats",
        "GRANT pg_read_all_stats TO sluice_control;",
    ),
    "owns a table": (
        "DROP TABLE IF EXISTS public.mine; CREATE TABLE public.mine (); ALTER TABLE public.mine OWNER TO app_rw;"
        " ALTER TABLE public.mine ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        "app_rw owns the table public.mine",
        "ALTER TABLE public.mine OWNER TO sluice_owner;",
    ),
    "owns a schema": (
        'CREATE SCHEMA "My Own" AUTHORIZATION app_ro',
        'app_ro owns the schema "My Own"',
        'ALTER SCHEMA "My Own" OWNER TO sluice_owner;',
    ),
    "owns a function of ours": (
        "ALTER FUNCTION sluice.uuid7() OWNER TO app_rw",
        "app_rw owns the function sluice.uuid7()",
        "ALTER FUNCTION sluice.uuid7() OWNER TO sluice_owner;",
    ),
    "truncate": (
        "GRANT TRUNCATE, TRIGGER ON sluice.api_keys TO sluice_readwrite",
        "sluice_readwrite has TRIGGER, TRUNCATE on sluice.api_keys",
        "REVOKE TRIGGER, TRUNCATE ON sluice.api_keys FROM sluice_readwrite;",
    ),
    "references": (
        "CREATE TABLE public.parent (id int PRIMARY KEY); GRANT REFERENCES (id) ON public.parent TO PUBLIC",
        "PUBLIC has REFERENCES on public.parent",
        "REVOKE REFERENCES (id) ON public.parent FROM PUBLIC;",
    ),
    "granted by another": (
        "CREATE ROLE giver; CREATE TABLE public.given (); GRANT TRUNCATE ON public.given TO giver WITH GRANT OPTION;"
        " SET ROLE giver; GRANT TRUNCATE ON public.given TO app_ro",
        "app_ro has TRUNCATE on public.given",
        "SET ROLE giver;\nREVOKE TRUNCATE ON public.given FROM app_ro;\nRESET ROLE;",
    ),
    "signing keys": (
        "GRANT SELECT ON sluice.signing_keys TO sluice_readwrite",
        "sluice_readwrite has SELECT on sluice.signing_keys",
        "REVOKE SELECT ON sluice.signing_keys FROM sluice_readwrite;",
    ),
    "a column of the signing keys": (
        "GRANT SELECT (opad) ON sluice.signing_keys TO PUBLIC",
        "PUBLIC has SELECT on sluice.signing_keys",
        "REVOKE SELECT (opad) ON sluice.signing_keys FROM PUBLIC;",
    ),
    "the log's table": (
        "GRANT SELECT ON sluice.api_access_logs TO authenticated_users",
        "authenticated_users has SELECT on sluice.api_access_logs",
        "REVOKE SELECT ON sluice.api_access_logs FROM authenticated_users;",
    ),
    "keys can be changed": (
        "GRANT UPDATE (permissions) ON sluice.api_keys TO app_rw",
        "app_rw has UPDATE on sluice.api_keys",
        "REVOKE UPDATE (permissions) ON sluice.api_keys FROM app_rw;",
    ),
    "verifiers can be read": (
        "GRANT SELECT (scram_verifier) ON sluice.api_keys TO sluice_readonly",
        "sluice_readonly may read what proves the keys",
        "REVOKE SELECT ON sluice.api_keys FROM sluice_readonly;",
    ),
    "keys can be read as a whole": (
        "GRANT SELECT ON sluice.api_keys TO authenticated_users",
        "authenticated_users may read what proves the keys",
        "REVOKE SELECT ON sluice.api_keys FROM authenticated_users;\nGRANT SELECT (id, name, user_id, permissions,"
        " default_pool, allowed_addresses, rate_limit_per_minute, expires_at, revoked_at, created_at, last_used_at,"
        " use_count, rotated_from, result_cache) ON sluice.api_keys TO authenticated_users;",
    ),
    "the control login reads a table": (
        "CREATE TABLE public.theirs (); GRANT SELECT ON public.theirs TO sluice_control",
        "sluice_control has SELECT on public.theirs",
        "REVOKE SELECT ON public.theirs FROM sluice_control;",
    ),
    "the control login makes signing keys": (
        "GRANT INSERT ON sluice.signing_keys TO sluice_control",
        "sluice_control has INSERT on sluice.signing_keys",
        "REVOKE INSERT ON sluice.signing_keys FROM sluice_control;",
    ),
    "the control login reads no signing keys": (
        "REVOKE SELECT ON sluice.signing_keys FROM sluice_control",
        "sluice_control lacks SELECT ON sluice.signing_keys",
        "GRANT SELECT ON sluice.signing_keys TO sluice_control;",
    ),
    "the control login reads no keys": (
        "REVOKE SELECT ON sluice.api_keys FROM sluice_control",
        "sluice_control lacks SELECT ON sluice.api_keys",
        "GRANT SELECT ON sluice.api_keys TO sluice_control;",
    ),
    "the control login writes no log": (
        "REVOKE INSERT ON sluice.api_access_logs FROM sluice_control",
        "sluice_control lacks INSERT ON sluice.api_access_logs",
        "GRANT INSERT ON sluice.api_access_logs TO sluice_control;",
    ),
    "the control login reads no versions": (
        "REVOKE SELECT ON sluice.schema_checksums FROM sluice_control",
        "sluice_control lacks SELECT ON sluice.schema_checksums",
        "GRANT SELECT ON sluice.schema_checksums TO sluice_control;",
    ),
    "the control login is shut out": (
        "REVOKE USAGE ON SCHEMA sluice FROM sluice_control",
        "sluice_control lacks USAGE ON SCHEMA sluice",
        "GRANT USAGE ON SCHEMA sluice TO sluice_control;",
    ),
    "the control login makes no partitions": (
        "REVOKE EXECUTE ON FUNCTION sluice.ensure_partitions(integer, integer) FROM sluice_control",
        "sluice_control may not call sluice.ensure_partitions(integer,integer)",
        "GRANT EXECUTE ON FUNCTION sluice.ensure_partitions(integer,integer) TO sluice_control;",
    ),
    "create in public": (
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        "PUBLIC may create objects in schema public",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC;",
    ),
    "an administrator in our schema": (
        "GRANT CREATE ON SCHEMA sluice TO sluice_admin",
        "sluice_admin may create objects in schema sluice",
        "REVOKE CREATE ON SCHEMA sluice FROM sluice_admin;",
    ),
    "create schemas": (
        "GRANT CREATE ON DATABASE app TO sluice_readwrite",
        "sluice_readwrite may create objects in database app",
        "REVOKE CREATE ON DATABASE app FROM sluice_readwrite;",
    ),
    "truncate on what comes": (
        "ALTER DEFAULT PRIVILEGES FOR ROLE sluice_owner IN SCHEMA public GRANT TRUNCATE ON TABLES TO sluice_readwrite",
        "sluice_readwrite will have TRUNCATE on each new table of sluice_owner",
        "ALTER DEFAULT PRIVILEGES FOR ROLE sluice_owner IN SCHEMA public REVOKE TRUNCATE ON TABLES"
        " FROM sluice_readwrite;",
    ),
    "no row security": (
        "ALTER TABLE sluice.api_keys DISABLE ROW LEVEL SECURITY",
        "sluice.api_keys is open to app_admin, app_ro, app_rw without row-level security",
        "ALTER TABLE sluice.api_keys ENABLE ROW LEVEL SECURITY;",
    ),
    "not forced": (
        "ALTER TABLE sluice.api_keys NO FORCE ROW LEVEL SECURITY",
        "sluice.api_keys is open to app_admin, app_ro, app_rw without FORCE",
        "ALTER TABLE sluice.api_keys FORCE ROW LEVEL SECURITY;",
    ),
    "an administrator's table": (
        'SET ROLE app_admin; CREATE TABLE public."of Admin" (id int)',
        'public."of Admin" is open to app_admin, app_ro, app_rw without row-level security',
        'ALTER TABLE public."of Admin" ENABLE ROW LEVEL SECURITY;',
    ),
    "a view with its owner's rights": (
        "CREATE VIEW public.seen AS SELECT id FROM sluice.api_keys; GRANT SELECT ON public.seen TO app_ro",
        "the view public.seen shows app_ro what its owner postgres may see",
        "ALTER VIEW public.seen SET (security_invoker = true);",
    ),
    "an administrator's view": (
        "SET ROLE app_admin; CREATE VIEW public.all_keys AS SELECT id FROM sluice.api_keys",
        "the view public.all_keys shows app_ro, app_rw what its owner app_admin may see",
        "ALTER VIEW public.all_keys SET (security_invoker = true);",
    ),
    "a materialized view": (
        "CREATE MATERIALIZED VIEW public.stored AS SELECT 1 AS one; GRANT SELECT ON public.stored TO sluice_readonly",
        "the materialized view public.stored can have no policies and is open to app_ro",
        "REVOKE ALL ON public.stored FROM PUBLIC, authenticated_users, app_ro, sluice_readonly;",
    ),
    "a policy for all": (
        "CREATE POLICY everything ON sluice.api_keys FOR SELECT TO sluice_readonly USING (true)",
        "policy everything shows all rows of sluice.api_keys to sluice_readonly",
        "DROP POLICY everything ON sluice.api_keys;",
    ),
    "a function of ours for all": (
        "GRANT EXECUTE ON FUNCTION sluice.create_signing_key() TO PUBLIC",
        "PUBLIC may call sluice.create_signing_key()",
        "REVOKE EXECUTE ON FUNCTION sluice.create_signing_key() FROM PUBLIC;",
    ),
    "new functions for all": (
        "ALTER DEFAULT PRIVILEGES FOR ROLE sluice_definer GRANT EXECUTE ON FUNCTIONS TO PUBLIC",
        "PUBLIC may call each new function of sluice_definer",
        "ALTER DEFAULT PRIVILEGES FOR ROLE sluice_definer REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;",
    ),
    "new functions of one schema for all": (
        "ALTER DEFAULT PRIVILEGES FOR ROLE sluice_owner IN SCHEMA sluice GRANT EXECUTE ON FUNCTIONS TO PUBLIC",
        "PUBLIC may call each new function of sluice_owner",
        "ALTER DEFAULT PRIVILEGES FOR ROLE sluice_owner IN SCHEMA sluice REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;",
    ),
    "a definer function's owner": (
        "ALTER FUNCTION sluice.current_user_id() OWNER TO postgres",
        "sluice.current_user_id() runs with the rights of its owner postgres",
        "ALTER FUNCTION sluice.current_user_id() OWNER TO sluice_definer;",
    ),
    "somebody's definer function": (
        "CREATE FUNCTION public.loophole() RETURNS int LANGUAGE sql SECURITY DEFINER"
        " SET search_path = pg_catalog, pg_temp AS 'SELECT 1'",
        "public.loophole() runs with the rights of its owner postgres, whom no policy binds",
        "ALTER FUNCTION public.loophole() OWNER TO sluice_definer;",
    ),
    "a definer function without a path": (
        "ALTER FUNCTION sluice.has_permission(text) RESET search_path",
        "sluice.has_permission(text) runs with its owner's rights and has no search_path of its own",
        "ALTER FUNCTION sluice.has_permission(text) SET search_path = pg_catalog, pg_temp;",
    ),
    "a path with temporary tables first": (
        "ALTER FUNCTION sluice.revoke_api_key(text) SET search_path = pg_catalog",
        "sluice.revoke_api_key(text) runs with its owner's rights and has a search_path that doesn't end",
        "ALTER FUNCTION sluice.revoke_api_key(text) SET search_path = pg_catalog, pg_temp;",
    ),
    "a function that tells too much": (
        "ALTER FUNCTION sluice.current_key_id() RESET debug_print_plan",
        "sluice.current_key_id() doesn't set debug_print_plan = off",
        "ALTER FUNCTION sluice.current_key_id() SET debug_print_plan = off;",
    ),
    "nobody may ask who is asking": (
        "REVOKE EXECUTE ON FUNCTION sluice.current_user_id(text) FROM authenticated_users",
        "authenticated_users may not call sluice.current_user_id(text)",
        "GRANT EXECUTE ON FUNCTION sluice.current_user_id(text) TO authenticated_users;",
    ),
    "others' statements": (
        "GRANT EXECUTE ON FUNCTION pg_stat_get_backend_activity(integer) TO PUBLIC",
        "pg_stat_get_backend_activity(integer) shows PUBLIC the statements of others",
        "REVOKE EXECUTE ON FUNCTION pg_stat_get_backend_activity(integer) FROM PUBLIC;\n"
        "GRANT EXECUTE ON FUNCTION pg_stat_get_backend_activity(integer) TO sluice_control, pg_monitor;",
    ),
    "statements of the past": (
        "CREATE EXTENSION pg_stat_statements SCHEMA public",
        "public.pg_stat_statements shows PUBLIC the statements of others",
        "REVOKE SELECT ON public.pg_stat_statements FROM PUBLIC;\n"
        "GRANT SELECT ON public.pg_stat_statements TO sluice_control, pg_monitor;",
    ),
    "activity is tracked": (
        "ALTER ROLE app_rw RESET track_activities",
        "app_rw doesn't start with track_activities = off",
        "ALTER ROLE app_rw SET track_activities = off;",
    ),
    "activity is tracked here": (
        "ALTER ROLE app_ro IN DATABASE app SET track_activities = on",
        "app_ro in database app starts with track_activities = 'on', not by setup",
        "ALTER ROLE app_ro IN DATABASE app RESET track_activities;",
    ),
    "readers write by default": (
        "ALTER ROLE app_ro SET default_transaction_read_only = off",
        "app_ro doesn't start with default_transaction_read_only = on",
        "ALTER ROLE app_ro SET default_transaction_read_only = on;",
    ),
    "a library for everybody": (
        "ALTER DATABASE app SET session_preload_libraries = 'auto_explain'",
        "database app starts with session_preload_libraries = 'auto_explain', not by setup",
        "ALTER DATABASE app RESET session_preload_libraries;",
    ),
    "a timeout for everybody": (
        "ALTER ROLE ALL SET statement_timeout = '1h'",
        "role all starts with statement_timeout = '1h', not by setup",
        "ALTER ROLE ALL RESET statement_timeout;",
    ),
    "an identity for everybody": (
        "ALTER ROLE app_rw SET sluice.identity = 'x'",
        "app_rw starts with sluice.identity = 'x', not by setup",
        "ALTER ROLE app_rw RESET sluice.identity;",
    ),
    "no signing key": (
        "DELETE FROM sluice.signing_keys",
        "there is no signing key",
        "SELECT sluice.create_signing_key();",
    ),
    "old extension": (
        "CREATE EXTENSION pg_trgm VERSION '1.5'",
        "extension pg_trgm is 1.5, 1.6 is installed",
        "ALTER EXTENSION pg_trgm UPDATE;",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_what_is_undone_is_found_and_mended_by_the_statement_that_is_told(
    checked: Checked, case: str
) -> None:
    undo, what, mend = CASES[case]
    checked.installation.execute(undo)
    found = [each for each in checked.look() if each.what != TEMPORARY]
    told = [each for each in found if what in each.what]
    assert [each.mend for each in told] == [mend], found
    for each in found:
        if each.mend and not each.mend.startswith("\\password"):
            checked.psql(each.mend)
    assert [each.what for each in checked.look()] == [TEMPORARY]


# What serve refuses: an undoing, and what a client could do then.
BYPASSES = (
    "superuser",
    "bypassrls",
    "createrole",
    "replication",
    "group bypassrls",
    "owner's member",
    "definer's member, by the group",
    "control's member, by another role",
    "administrator",
    "predefined role",
    "owns a table",
    "owns a function of ours",
    "signing keys",
    "a column of the signing keys",
)


@pytest.mark.parametrize("case", BYPASSES)
def test_what_would_let_clients_pass_is_refused(checked: Checked, case: str) -> None:
    undo, what, mend = CASES[case]
    checked.installation.execute(undo)
    database = parse(yaml.safe_dump(checked.content), {}).databases["app"]

    async def refusals() -> list[Finding]:
        async with checked.installation.role("sluice_control").asyncpg() as connection:
            await connection.execute("SET search_path = pg_catalog")
            return await gate.bypasses(connection, database)

    found = asyncio.run(refusals())
    assert [each.mend for each in found if what in each.what] == [mend]
    told = str(gate.BypassError({"one": found, "two": found}))
    assert f"one, two: {found[0].what}; as a superuser: " in told
    for each in found:
        checked.psql(each.mend)
    assert asyncio.run(refusals()) == []


def test_serve_refuses_to_start_where_a_pool_could_pass(checked: Checked, tmp_path: Path) -> None:
    proxy = Proxy(checked.installation, tmp_path)
    command = [sys.executable, "-m", "proxy", "serve", "-c", str(proxy.config)]
    checked.installation.execute("ALTER ROLE app_rw BYPASSRLS")
    try:
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        checked.installation.execute("ALTER ROLE app_rw NOBYPASSRLS")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Traceback" not in refused.stderr and "destroyed" not in refused.stderr
    said = "primary: app_rw has BYPASSRLS; as a superuser: ALTER ROLE app_rw NOBYPASSRLS;"
    assert said in refused.stderr
    assert "listening" not in refused.stderr
    checked.installation.execute("ALTER ROLE app_rw SET work_mem = '1MB'")
    proxy.start()
    checked.installation.execute("ALTER ROLE app_rw RESET work_mem")
    proxy.stop()
    assert proxy.said(
        "app_rw starts with work_mem = '1MB', not by setup; as a superuser: ALTER ROLE app_rw RESET"
    )


@pytest.mark.long
def test_a_server_that_comes_up_later_is_looked_at_first(checked: Checked, tmp_path: Path) -> None:
    installation = checked.installation
    server = installation.cluster.primary
    user, key = installation.generate_key("late@example.com", ["read:tasks"])
    installation.execute("ALTER ROLE app_ro BYPASSRLS")
    server.stop()
    try:
        changes = {"databases": {"app": {"health": {"interval": "100ms", "retry_after": "200ms"}}}}
        proxy = Proxy(installation, tmp_path, changes)
        proxy.start()
        server.start()
        said = "app_ro has BYPASSRLS; as a superuser: ALTER ROLE app_ro NOBYPASSRLS;"
        wait_until(lambda: proxy.said(said), message="the proxy tells what it found")
        status = httpx.get(proxy.url("/readyz")).status_code
        detail = httpx.get(proxy.url("/health")).json()["hosts"][0]["error"]
        assert status == 503
        assert "could pass by row-level security" in detail and "app_ro" not in detail
        # What waits for it is refused, not served.
        with pytest.raises(psycopg.OperationalError):
            proxy.login(user, key).connect()
        installation.execute("ALTER ROLE app_ro NOBYPASSRLS")
        wait_until(lambda: httpx.get(proxy.url("/readyz")).status_code == 200, message="the proxy is ready")
        with proxy.login(user, key).connect() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert sum(said in line for line in proxy.errors.read_text().splitlines()) == 1
        proxy.stop()
    finally:
        server.start()
        installation.execute("ALTER ROLE app_ro NOBYPASSRLS")


def test_after_harden_there_is_nothing_at_all(checked: Checked) -> None:
    server = checked.installation.cluster.primary
    made = setup(server.dsn("hardened"), "hardened")
    assert made.passwords == {}
    # What a case above left behind.
    checked.installation.execute('DROP ROLE IF EXISTS "a step"')
    harden(server.dsn(), "hardened")
    try:
        database = {**checked.content["databases"]["app"], "database": "hardened"}
        assert checked.report({**checked.content, "databases": {"app": database}}).found == []
    finally:
        checked.installation.execute("DROP DATABASE hardened WITH (FORCE)")


def test_versions_that_differ_are_told(checked: Checked) -> None:
    files = {each: migration.sha256() for each, migration in Migrations().migrations.items()}
    changed = {**files, "core_0002": "0" * 64, "core_0099": "1" * 64}
    del changed["core_0003"]
    report = asyncio.run(live.look(parse(yaml.safe_dump(checked.content), {}), changed))
    told = {each.finding.what: each.finding for each in report.found if each.finding.topic == "schema"}
    assert told.keys() == {
        "migration core_0002 was changed since it was applied",
        "migration core_0003 was applied, and this version doesn't know it",
        "migration core_0099 is pending",
    }
    assert {each.severity for each in told.values()} == {ERROR}
    assert told["migration core_0099 is pending"].advice == "pgsluice migrate up --schema core"


def test_missing_partitions_are_told_and_made(checked: Checked) -> None:
    installation = checked.installation
    with installation.superuser().connect() as connection:
        tomorrow = "to_char((now() AT TIME ZONE 'UTC')::date + 1, 'YYYYMMDD')"
        (name,) = connection.execute(
            f"SELECT 'sluice.api_access_logs_' || {tomorrow}".encode()
        ).fetchone() or ("",)
        connection.execute(f"DROP TABLE {name}".encode())
    (found,) = (each for each in checked.look() if each.what != TEMPORARY)
    assert (found.severity, found.mend) == (ERROR, "SELECT sluice.ensure_partitions();")
    assert found.what.startswith("sluice.api_access_logs has no partition for 20")
    checked.psql(found.mend)
    installation.execute(f"ALTER TABLE {name} NO FORCE ROW LEVEL SECURITY")
    (found,) = (each for each in checked.look() if each.what != TEMPORARY)
    assert found.mend == f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY;"
    checked.psql(found.mend)
    assert [each.what for each in checked.look()] == [TEMPORARY]


def test_a_table_for_everybody_says_so_in_its_comment(checked: Checked) -> None:
    execute = checked.installation.execute
    execute("CREATE TABLE public.countries (code text)", "GRANT SELECT ON public.countries TO PUBLIC")
    mends = [each.mend for each in checked.look() if each.what != TEMPORARY]
    assert mends == [
        "ALTER TABLE public.countries ENABLE ROW LEVEL SECURITY;",
        "ALTER TABLE public.countries FORCE ROW LEVEL SECURITY;",
    ]
    execute("COMMENT ON TABLE public.countries IS 'ISO 3166; pgsluice: public'")
    assert [each.what for each in checked.look()] == [TEMPORARY]
    execute("DROP TABLE public.countries")


def test_a_password_that_is_not_the_login_s(checked: Checked) -> None:
    app = checked.content["databases"]["app"]
    pools = {**app["pools"], "readonly": {**app["pools"]["readonly"], "password": "wrong"}}
    report = checked.report({**checked.content, "databases": {"app": {**app, "pools": pools}}})
    (found,) = (each.finding for each in report.found if each.finding.what != TEMPORARY)
    assert (found.severity, found.mend) == (ERROR, "\\password app_ro")
    assert found.what == 'app_ro can\'t log in: password authentication failed for user "app_ro"'


def test_a_pool_that_shares_the_proxy_s_own_login(checked: Checked, tmp_path: Path) -> None:
    pool = checked.content["databases"]["app"]["pools"]["primary"]
    control = {key: pool[key] for key in ("user", "password")}
    changes = {"databases": {"app": {"control": control}}}
    proxy = Proxy(checked.installation, tmp_path, changes)
    (told,) = (
        each.finding
        for each in checked.report(yaml.safe_load(proxy.config.read_text())).found
        if each.finding.advice.startswith("give the pools a login of their own")
    )
    assert (told.severity, told.what) == (ERROR, "a pool logs in as app_rw, which can sign for any user")
    command = [sys.executable, "-m", "proxy", "serve", "-c", str(proxy.config)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert f"primary: {told.what}; {told.advice}" in refused.stderr


def test_a_database_without_our_sql(checked: Checked) -> None:
    app = {**checked.content["databases"]["app"], "database": "postgres"}
    report = checked.report({**checked.content, "databases": {"app": app}})
    whats = [each.finding.what for each in report.found]
    assert "the bundled SQL is not in this database" in whats
    # Without a signed identity nothing rests on it.
    off = {"identity": {"mode": "off"}, "auth": {"keys": "file", "keys_file": __file__}}
    content = {**checked.content, **off, "databases": {"app": app}, "access_log": {"sinks": ["stdout"]}}
    assert checked.report(content).found == []


def test_a_replica_s_own_faults_are_told_of_it_alone(installation: Installation, tmp_path: Path) -> None:
    path = tmp_path / "pgsluice.yaml"
    path.write_text(yaml.safe_dump(configuration(installation, 6432, 9432, tmp_path)))

    def found() -> list[tuple[list[str], str]]:
        result = CliRunner().invoke(app, ["check", "-c", str(path), "--json"])
        report = json.loads(result.stdout)
        assert [each["role"] for each in report["hosts"]] == ["primary", "replica"]
        hosts = [each for each in report["findings"] if each["topic"] == "host"]
        assert result.exit_code == (0 if report["ok"] else 1)
        return [(each["hosts"], each["mend"]) for each in hosts]

    assert found() == []
    with installation.superuser(installation.cluster.replicas[0]).connect() as replica:
        replica.execute("SELECT pg_wal_replay_pause()")
        try:
            # What others write meanwhile may make it lag, too.
            assert (["replica1"], "SELECT pg_wal_replay_resume();") in found()
        finally:
            replica.execute("SELECT pg_wal_replay_resume()")
    wait_until(lambda: not found(), message="the replica catches up")
