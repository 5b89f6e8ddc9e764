"""`pgsluice keys`, `migrate` and `route` against a real server."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from proxy.cli import app
from tests.integration.support import Installation, configuration


@pytest.fixture(scope="module")
def config(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the path of a configuration whose replica stands first."""
    directory = tmp_path_factory.mktemp("commands")
    content = configuration(installation, 6432, 9432, directory)
    content["databases"]["app"]["hosts"].reverse()
    path = directory / "pgsluice.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


def as_json(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_key_from_its_making_to_its_end(config: str) -> None:
    at = ("-c", config)
    options = (
        "--permission",
        "read:tasks",
        "--address",
        "10.0.0.0/8",
        "--rate-limit",
        "60",
        "--expires",
        "30d",
    )
    made = as_json("keys", "create", "--user", "cli@example.com", "--name", "reports", *options, *at)
    assert made["api_key"].startswith(made["id"] + "_")

    (listed,) = as_json("keys", "list", "--user", "cli@example.com", *at)
    assert (listed["id"], listed["name"], listed["permissions"]) == (made["id"], "reports", ["read:tasks"])
    assert (listed["allowed_addresses"], listed["rate_limit_per_minute"]) == (["10.0.0.0/8"], 60)
    assert (listed["state"], listed["use_count"], listed["last_used_at"]) == ("active", 0, None)
    assert made["id"] in run("keys", "list", *at).stdout

    rotated = as_json("keys", "rotate", made["id"], "--grace", "1h", *at)
    assert rotated["rotated_from"] == made["id"]
    assert rotated["permissions"] == ["read:tasks"]

    shown = as_json("keys", "show", made["id"], *at)
    assert (shown["state"], shown["replaced_by"]) == ("rotating", rotated["id"])
    until = datetime.fromisoformat(shown["expires_at"])
    assert f"rotating until {until:%Y-%m-%d %H:%M}" in run("keys", "show", made["id"], *at).stdout
    assert f"rotating until {until:%Y-%m-%d %H:%M}" in run("keys", "list", *at).stdout
    assert as_json("keys", "show", rotated["id"], *at)["state"] == "active"

    assert as_json("keys", "revoke", made["id"], *at) == {"id": made["id"], "revoked": True}
    assert as_json("keys", "show", made["id"], *at)["state"] == "revoked"
    missing = run("keys", "show", "ctm_ab12cd34ef56", *at)
    assert (missing.exit_code, missing.stdout, missing.stderr) == (
        1,
        "",
        "pgsluice: there is no key ctm_ab12cd34ef56\n",
    )
    again = run("keys", "revoke", made["id"], *at)
    assert (again.exit_code, again.stderr) == (
        1,
        f"pgsluice: there is no key {made['id']}, or it was revoked before\n",
    )


def test_a_new_key_stands_alone_on_standard_output(config: str) -> None:
    result = run("keys", "create", "--user", "cli@example.com", "-c", config)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert result.stdout.startswith("ctm_")
    assert "shown this once" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["keys", "rotate", "ctm_ab12cd34ef56"], "there is no valid API key ctm_ab12cd34ef56"),
        (["keys", "create", "--user", "a|b"], '--user: 1 to 320 characters, without "|"'),
        (["keys", "create", "--user", "a", "--expires", "2020-01-01"], "--expires: lies in the past"),
    ],
)
def test_what_the_database_refuses_is_told(config: str, arguments: list[str], message: str) -> None:
    result = run(*arguments, "-c", config)
    assert result.exit_code == 1
    assert result.stderr.startswith("pgsluice: ")
    assert message in result.stderr
    assert "SCRAM" not in result.stderr


def test_a_database_without_our_sql_is_told(installation: Installation) -> None:
    server = installation.cluster.primary
    result = run("keys", "list", "--dsn", server.dsn("postgres"))
    assert (result.exit_code, result.stderr) == (
        1,
        "pgsluice: this database holds no sluice.api_keys; `pgsluice setup` makes it\n",
    )


def test_route_knows_the_databases_own_functions(installation: Installation, config: str) -> None:
    installation.execute(
        "CREATE FUNCTION public.cli_reads() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'",
        "CREATE FUNCTION public.cli_writes() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1'",
    )
    installation.replicated()
    targets = {}
    for name in ("cli_reads", "cli_writes"):
        result = run("route", "-c", config, f"SELECT public.{name}()")
        assert result.exit_code == 0, result.output
        targets[name] = json.loads(result.stdout)["target"]
    installation.execute("DROP FUNCTION public.cli_reads()", "DROP FUNCTION public.cli_writes()")
    assert targets == {"cli_reads": "readonly", "cli_writes": "primary"}
    assert json.loads(run("route", "SELECT public.cli_reads()").stdout)["target"] == "primary"


def test_migrations_are_listed_and_sound(installation: Installation) -> None:
    dsn = installation.cluster.primary.dsn("app")
    listed = as_json("migrate", "status", "--dsn", dsn)
    assert {each["problem"] for each in listed} == {""}
    assert run("migrate", "validate", "--dsn", dsn).exit_code == 0


def test_check_of_a_configuration_that_serves(config: str) -> None:
    assert run("check", "-c", config, "--config-only").stdout == "sound: 1 database, 2 hosts, 5 pools\n"
