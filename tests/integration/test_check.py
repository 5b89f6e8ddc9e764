"""`pgsluice check` on live servers: nothing to say after `setup`, and every hardening that is taken back is found.

Each case of undone.py undoes one thing by hand; the check has to name it with a statement, and after that statement,
pasted into a superuser's psql, has to be as content as before.
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
from tests.integration.undone import BYPASSES, CASES

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
